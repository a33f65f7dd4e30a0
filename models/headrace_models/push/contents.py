"""What is pushed: files, each with its role in the model and with where its bytes come from. Nothing is read here but
what a caller asks for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from headrace_models.errors import SourceUnavailable, SourceUnusable
from headrace_models.seek_index import SeekIndex
from headrace_models.sources.base import Source, SourceFile

BLOCK_BYTES = 1 << 20


class Role(StrEnum):
    """What a file is to the model; decides its layer's media type."""

    WEIGHTS = "weights"
    CONFIG = "config"
    TEMPLATE = "template"
    DOCUMENT = "document"
    LICENCE = "licence"
    INDEX = "index"


class Content(Protocol):
    """Bytes that stay the same, or say that they do not."""

    @property
    def size_bytes(self) -> int: ...

    def blocks(self, begin: int, end: int) -> Iterator[bytes]:
        """Bytes `begin` to `end` (not included), BLOCK_BYTES at most at a time.

        Raises SourceChanged, SourceUnusable.
        """
        ...


@dataclass(frozen=True, slots=True)
class BytesContent:
    """Bytes in memory."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        """See Content."""
        return len(self.data)

    def blocks(self, begin: int, end: int) -> Iterator[bytes]:
        """See Content."""
        for at in range(begin, end, BLOCK_BYTES):
            yield self.data[at : min(end, at + BLOCK_BYTES)]


@dataclass(frozen=True, slots=True)
class SourceContent:
    """A file of a source that is on this machine, so that reading it again later would not help."""

    source: Source
    file: SourceFile

    @property
    def size_bytes(self) -> int:
        """See Content."""
        return self.file.size_bytes

    def blocks(self, begin: int, end: int) -> Iterator[bytes]:
        """See Content."""
        try:
            with self.source.read(self.file, begin, end) as body:
                while data := body.read(BLOCK_BYTES):
                    yield data
        except SourceUnavailable as error:
            raise SourceUnusable(str(error)) from error


@dataclass(frozen=True, slots=True)
class PushedFile:
    """A file to push. `expected_chunk`: the SHA-256 that each chunk of a shard must have, None for one that is unknown
    and therefore wrong; without the function nothing is known."""

    path: str
    role: Role
    content: Content
    expected_chunk: Callable[[int], bytes | None] | None = None


@dataclass(frozen=True, slots=True)
class WeightsFacts:
    """What the artifact's config says of the weights; None: not known. `weights` is `safetensors` or `gguf`, `family`
    the config's `model_type`, `precision` named as in torch, `max_length` in tokens."""

    weights: str
    weight_bytes: int
    family: str | None = None
    num_parameters: int | None = None
    precision: str | None = None
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class ModelContents:
    """A model to push. `index` is of its shards, without digests; None where they are not safetensors. `fetched_from`
    are the registry and the repository that it came from, which may have its blobs still; `notes` are lines for a
    user."""

    files: tuple[PushedFile, ...]
    facts: WeightsFacts
    index: SeekIndex | None = None
    fetched_from: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()


def read_whole(content: Content, begin: int, end: int) -> bytes:
    """Bytes `begin` to `end` (not included) in memory. Raises SourceChanged, SourceUnusable."""
    return b"".join(content.blocks(begin, end))
