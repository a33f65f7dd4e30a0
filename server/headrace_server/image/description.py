"""An image as far as its manifest, its configuration and the places of its layers tell.

Sizes are bytes. `size_bytes` is what is stored where the image was read, which for a registry is what a pull moves;
`unpacked_bytes` is None where nobody says it without decompressing the layer.
"""

from dataclasses import dataclass
from enum import StrEnum

from headrace_models.digest import Sha256


class Compression(StrEnum):
    """How a layer's tar is compressed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


class LazyIndex(StrEnum):
    """What lets a node read single files of a layer before all of it has come."""

    ESTARGZ = "eStargz"
    ZSTD_CHUNKED = "zstd:chunked"
    SOCI = "SOCI"


class LayerKind(StrEnum):
    """What the history says that a layer holds."""

    BASE = "base"
    PACKAGES = "packages"
    MODEL = "model"
    FILES = "files"
    APP = "app"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system and processor, in the names of Go, which images use."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. `created_by` is the instruction that made it, empty where the history does not tell."""

    digest: Sha256
    media_type: str
    compression: Compression
    size_bytes: int
    unpacked_bytes: int | None = None
    created_by: str = ""
    kind: LayerKind = LayerKind.OTHER
    lazy_index: LazyIndex | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """An image for one platform. `digest` is its manifest's; None in an archive that has none (docker save).

    `is_as_pulled`: whether layers are stored as a registry would send them. Archives of `docker save` hold them
    uncompressed, so that nothing follows for what a pull moves.
    """

    name: str
    layers: tuple[Layer, ...]
    platform: Platform | None = None
    digest: Sha256 | None = None
    is_as_pulled: bool = True

    @property
    def size_bytes(self) -> int:
        """All layers as they are stored; one that is there twice counts once, as it is pulled once."""
        return sum({layer.digest: layer.size_bytes for layer in self.layers}.values())

    @property
    def unpacked_bytes(self) -> int | None:
        """All layers unpacked; None unless that is known of each."""
        sizes = [layer.unpacked_bytes for layer in self.layers]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None
