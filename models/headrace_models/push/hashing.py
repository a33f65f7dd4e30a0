"""The digests of what is pushed, from one reading of every byte, and the seek index that they go into.

Takes a second for 0.85 GB on one core, since each byte of a shard is hashed twice, and a chunk's memory for each
thread. What the store has recorded of its chunks is compared on the way.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from headrace_models.chunk_layout import ChunkLayout
from headrace_models.digest import Sha256
from headrace_models.errors import DigestMismatch, SourceChanged
from headrace_models.push.contents import BLOCK_BYTES, PushedFile, read_whole
from headrace_models.seek_index import IndexedFile, SeekIndex
from headrace_models.seek_index_json import encode

# What an index says of itself may not depend on where it was made, so that equal models have equal artifacts.
REFERENCE = "oci artifact"


@dataclass(frozen=True, slots=True)
class Hashed:
    """A file's digest and, of a shard, those of its chunks."""

    digest: Sha256
    chunk_digests: tuple[Sha256, ...] = ()


def hash_file(file: PushedFile, layout: ChunkLayout | None, on_bytes: Callable[[int], None]) -> Hashed:
    """Read a file once. Raises DigestMismatch, SourceChanged, SourceUnusable, and what `on_bytes` raises."""
    whole, chunks = hashlib.sha256(), []
    for number, (begin, end) in enumerate(_ranges(file, layout)):
        data = read_whole(file.content, begin, end)
        if len(data) != end - begin:
            raise SourceChanged(f"{file.path} is shorter than it was")
        whole.update(data)
        if layout is not None:
            found = hashlib.sha256(data)
            _check_chunk(file, number, found.digest())
            chunks.append(Sha256(found.hexdigest()))
        on_bytes(len(data))
    return Hashed(Sha256(whole.hexdigest()), tuple(chunks))


def _ranges(file: PushedFile, layout: ChunkLayout | None) -> Iterable[tuple[int, int]]:
    if layout is not None:
        return (layout.range_of(chunk) for chunk in range(len(layout)))
    size_bytes = file.content.size_bytes
    return ((begin, min(size_bytes, begin + BLOCK_BYTES)) for begin in range(0, size_bytes, BLOCK_BYTES))


def _check_chunk(file: PushedFile, chunk: int, found: bytes) -> None:
    if file.expected_chunk is not None and file.expected_chunk(chunk) != found:
        raise DigestMismatch(f"{file.path} is damaged in the model cache (chunk {chunk}): headrace verify repairs it")


def written_index(index: SeekIndex, shards: Sequence[PushedFile], hashed: Mapping[str, Hashed]) -> bytes:
    """The seek index as it lies beside the weights: with all digests and the shards' headers, and with nothing of the
    place that the model was pushed from. Raises SourceChanged, SourceUnusable."""
    contents = {file.path: file.content for file in shards}
    files = tuple(_with_digests(file, hashed[file.path]) for file in index.files)
    headers = {file.path: read_whole(contents[file.path], 0, file.data_begin) for file in files}
    revision = hashlib.sha256("".join(f"{file.path} {file.digest}\n" for file in files).encode()).hexdigest()
    bound = replace(index, reference=REFERENCE, revision=f"sha256:{revision}", files=files, proofs=())
    return encode(bound, headers)


def _with_digests(file: IndexedFile, hashed: Hashed) -> IndexedFile:
    return replace(file, validator=None, digest=hashed.digest, chunk_digests=hashed.chunk_digests)
