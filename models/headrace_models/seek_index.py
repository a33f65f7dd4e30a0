"""The seek index of one model revision: where every tensor is, in which order they are used, how bytes are checked.

Built by `index_building` from headers alone. Written as canonical JSON (`seek_index_json`), so that it has a digest of
its own. An index that was parsed keeps every promise that one built here does, since `seek_index_checks` believes
nothing. Media type of an index inside an OCI artifact: MEDIA_TYPE.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from headrace_models.chunk_layout import ChunkLayout, Extent, lay_out
from headrace_models.digest import Sha256
from headrace_models.sources.base import FileRange, Proof
from headrace_models.trust import Trust

MEDIA_TYPE = "application/vnd.headrace.model.seekindex.v1+json"
MAX_INDEX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class IndexedTensor:
    """Where a tensor is: bytes `begin` to `end` (not included), counted from the start of shard number `file`.

    `group` is its number in `SeekIndex.groups`; `dtype` is safetensors' name.
    """

    name: str
    file: int
    begin: int
    end: int
    dtype: str
    shape: tuple[int, ...]
    group: int

    @property
    def size_bytes(self) -> int:
        """What the tensor takes in its shard."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """One shard. `data_begin` is where its header ends; `chunk_digests` are those known before the bytes, or None."""

    path: str
    size_bytes: int
    data_begin: int
    validator: str | None
    digest: Sha256 | None
    chunk_digests: tuple[Sha256, ...] | None = None


@dataclass(frozen=True)
class SeekIndex:
    """The index. `tensors` are in execution order, within a group in the order of shards and bytes. `proofs` speak of
    shards only."""

    reference: str
    revision: str
    architecture: str | None
    groups: tuple[str, ...]
    files: tuple[IndexedFile, ...]
    tensors: tuple[IndexedTensor, ...]
    proofs: tuple[Proof, ...]

    @cached_property
    def layouts(self) -> tuple[ChunkLayout, ...]:
        """The chunks of each shard."""
        extents: list[list[Extent]] = [[] for _ in self.files]
        for tensor in self.tensors:
            extents[tensor.file].append(Extent(tensor.begin, tensor.end, tensor.group))
        return tuple(
            lay_out(file.size_bytes, file.data_begin, sorted(of_file, key=lambda extent: (extent.begin, extent.end)))
            for file, of_file in zip(self.files, extents, strict=True)
        )

    @cached_property
    def tensors_by_name(self) -> Mapping[str, IndexedTensor]:
        """Tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    @property
    def weight_bytes(self) -> int:
        """Size of all shards."""
        return sum(file.size_bytes for file in self.files)

    @cached_property
    def trust(self) -> Trust:
        """What the digests in this index are worth."""
        if all(file.chunk_digests is not None for file in self.files):
            return Trust.CHUNK
        proven = _proven(self.proofs)
        return Trust.FILE if all(_is_whole(file, proven[file.path]) for file in self.files) else Trust.NONE

    def chunks_in_order(self) -> Iterator[tuple[int, int]]:
        """(shard, chunk) of everything: headers first, then in execution order; each once."""
        for file, layout in enumerate(self.layouts):
            yield from ((file, chunk) for chunk in layout.covering(0, self.files[file].data_begin))
        last: tuple[int, int] | None = None
        for tensor in self.tensors:
            for chunk in self.layouts[tensor.file].covering(tensor.begin, tensor.end):
                if (tensor.file, chunk) != last:
                    last = (tensor.file, chunk)
                    yield last

    def to_json(self) -> bytes:
        """The canonical form."""
        from headrace_models.seek_index_json import encode  # which imports this module

        return encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> "SeekIndex":
        """Read an index; raises UnsafeModel unless it is one of this format and contradicts itself nowhere."""
        from headrace_models.seek_index_json import decode  # which imports this module

        return decode(data)


def _proven(proofs: Sequence[Proof]) -> Mapping[str, list[tuple[int, int]]]:
    """The ranges of each file that some proof speaks of."""
    ranges: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for proof in proofs:
        for part in proof.parts:
            if isinstance(part, FileRange):
                ranges[part.path].append((part.begin, part.end))
    return ranges


def _is_whole(file: IndexedFile, ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether `ranges` leave out no byte of a file; it may be made of several blobs."""
    position = 0
    for begin, end in sorted(ranges):
        if begin > position:
            return False
        position = max(position, end)
    return position >= file.size_bytes
