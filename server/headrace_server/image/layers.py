"""From descriptors and the configuration to layers: compression, index, unpacked size, kind. Pure."""

from collections.abc import Callable

from headrace_server.image.description import Compression, Layer, LazyIndex
from headrace_server.image.documents import SOCI_INDEX_DIGEST, Config, Descriptor, Manifest
from headrace_server.image.errors import ImageUnreadable
from headrace_server.image.layer_kinds import kind_of

# https://github.com/awslabs/soci-snapshotter, soci/soci_index.go: smaller layers get no zTOC unless asked for.
SOCI_MIN_LAYER_BYTES = 10 << 20

_LAYER_TYPES = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
# https://github.com/containerd/stargz-snapshotter, estargz/types.go.
_ESTARGZ_TOC = "containerd.io/snapshot/stargz/toc.digest"
_ESTARGZ_UNPACKED = "io.containers.estargz.uncompressed-size"
# https://github.com/containers/storage, pkg/chunked/internal/minimal/compression.go; Buildah 1.28 has the second one.
_ZSTD_TOCS = frozenset(
    {"io.github.containers.zstd-chunked.manifest-checksum", "io.containers.zstd-chunked.manifest-checksum"}
)

# Files of images shrink to a quarter at most, but for logs and the like, so that less than this was less than 4 GiB.
_MAX_TRUSTED_GZIP_BYTES = 1 << 30

Unpacked = Callable[[Descriptor, Compression], int | None]


def described_layers(manifest: Manifest, config: Config, unpacked: Unpacked) -> tuple[Layer, ...]:
    """The image's layers, lowest first; `unpacked` knows the unpacked size of some. Raises ImageUnreadable."""
    if len(config.diff_ids) != len(manifest.layers):
        raise ImageUnreadable(
            f"the configuration has {len(config.diff_ids)} layers and the manifest {len(manifest.layers)}: build again"
        )
    instructions = config.created_by or ("",) * len(manifest.layers)
    has_soci = SOCI_INDEX_DIGEST in manifest.annotations
    return tuple(
        Layer(
            descriptor.digest,
            descriptor.media_type,
            compression := compression_of(descriptor.media_type),
            descriptor.size_bytes,
            _unpacked_bytes(descriptor, compression, unpacked),
            text,
            kind_of(text, is_first=number == 1, is_last=number == len(instructions)),
            _lazy_index(descriptor, compression, has_soci=has_soci),
        )
        for number, (descriptor, text) in enumerate(zip(manifest.layers, instructions, strict=True), 1)
    )


def compression_of(media_type: str) -> Compression:
    """What a layer's media type says. Raises ImageUnreadable for one that is no layer's."""
    if not media_type.startswith(_LAYER_TYPES):
        raise ImageUnreadable(f"not a layer of a container image: {ascii(media_type[:100])}")
    if media_type.endswith(("gzip", "gz")):
        return Compression.GZIP
    return Compression.ZSTD if media_type.endswith("zstd") else Compression.NONE


def sniffed(head: bytes) -> Compression:
    """What a layer's first bytes say."""
    if head.startswith(b"\x1f\x8b"):
        return Compression.GZIP
    return Compression.ZSTD if head.startswith(b"\x28\xb5\x2f\xfd") else Compression.NONE


def gzip_unpacked_bytes(trailer: bytes, size_bytes: int) -> int | None:
    """The size that a gzip file's last four bytes state (RFC 1952, ISIZE). It is modulo 4 GiB, and of the last member
    only; None where the file is large enough for the first to matter, or the size too small to be of all members."""
    stated = int.from_bytes(trailer, "little")
    is_plausible = len(trailer) == 4 and size_bytes <= _MAX_TRUSTED_GZIP_BYTES and size_bytes <= 1.01 * stated + 1024
    return stated if is_plausible else None


def _unpacked_bytes(descriptor: Descriptor, compression: Compression, unpacked: Unpacked) -> int | None:
    if compression is Compression.NONE:
        return descriptor.size_bytes
    stated = descriptor.annotations.get(_ESTARGZ_UNPACKED, "")
    if stated.isascii() and stated.isdecimal() and len(stated) < 16:
        return int(stated)
    # Of several gzip members the last one's trailer counts that member only.
    return None if _ESTARGZ_TOC in descriptor.annotations else unpacked(descriptor, compression)


def _lazy_index(descriptor: Descriptor, compression: Compression, *, has_soci: bool) -> LazyIndex | None:
    if _ESTARGZ_TOC in descriptor.annotations:
        return LazyIndex.ESTARGZ
    if not _ZSTD_TOCS.isdisjoint(descriptor.annotations):
        return LazyIndex.ZSTD_CHUNKED
    is_indexed = has_soci and compression is not Compression.ZSTD and descriptor.size_bytes >= SOCI_MIN_LAYER_BYTES
    return LazyIndex.SOCI if is_indexed else None
