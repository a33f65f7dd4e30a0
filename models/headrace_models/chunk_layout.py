"""How a shard is cut into chunks, the ranges that are checked, marked and evicted one by one. Pure.

Chunks are anchored at tensors: none straddles two groups, so that a layer is a whole number of chunks, and whoever
wants one layer fetches nothing of another. The header is chunks of its own. A tensor is cut into pieces of
UNIT_BYTES (what a crash can lose per connection); neighbours of one group that are smaller than PACK_BYTES share a
chunk. A tensor without bytes changes nothing. The layout follows from the tensors and their groups alone, so an index
stores digests and no offsets; another rule needs another `LAYOUT`, which the index names.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LAYOUT = "tensor-1MiB/1"
UNIT_BYTES = 1 << 20
PACK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Extent:
    """A tensor's place in its shard, `begin` to `end` (not included), and the number of its group."""

    begin: int
    end: int
    group: int


class ChunkLayout:
    """The chunks of one shard, numbered from 0 in the order of their bytes; together they are the whole file.

    Byte ranges that are asked about lie within the file.
    """

    __slots__ = ("_begins", "_groups", "size_bytes")

    def __init__(self, size_bytes: int, begins: Iterable[int], groups: Iterable[int]) -> None:
        self.size_bytes = size_bytes
        self._begins = array("Q", begins)
        self._groups = array("l", groups)

    def __len__(self) -> int:
        return len(self._begins)

    def range_of(self, chunk: int) -> tuple[int, int]:
        """First byte, and the one after the last."""
        last = chunk + 1 == len(self._begins)
        return self._begins[chunk], self.size_bytes if last else self._begins[chunk + 1]

    def group_of(self, chunk: int) -> int | None:
        """The number of the group that the chunk belongs to; None for the header."""
        return None if self._groups[chunk] < 0 else self._groups[chunk]

    def covering(self, begin: int, end: int) -> range:
        """The chunks that hold bytes `begin` to `end` (not included); none for an empty range."""
        if begin >= end:
            return range(0)
        return range(bisect_right(self._begins, begin) - 1, bisect_left(self._begins, end))

    def inside(self, begin: int, end: int) -> range:
        """The chunks that lie wholly in bytes `begin` to `end` (not included)."""
        first = bisect_left(self._begins, begin)
        last = len(self._begins) if end >= self.size_bytes else bisect_right(self._begins, end) - 1
        return range(first, max(first, last))


def lay_out(size_bytes: int, data_begin: int, extents: Iterable[Extent]) -> ChunkLayout:
    """Cut a shard of `size_bytes` whose header ends at `data_begin`.

    `extents` are in the order of their bytes and cover everything from `data_begin` to the end without holes or
    overlaps, which `safetensors_header` checks.
    """
    begins, groups = array("Q"), array("l")
    for begin, end, group in _pieces(data_begin, extents):
        for offset in range(begin, end, UNIT_BYTES):
            begins.append(offset)
            groups.append(group)
    return ChunkLayout(size_bytes, begins, groups)


def _pieces(data_begin: int, extents: Iterable[Extent]) -> Iterator[tuple[int, int, int]]:
    """Ranges to cut: the header (group -1), tensors, and runs of small neighbours that fit one chunk."""
    begin, end, group = 0, data_begin, -1
    packing = False
    for extent in extents:
        if extent.begin == extent.end:
            continue
        small = extent.end - extent.begin < PACK_BYTES
        fits = packing and small and extent.group == group and extent.end - begin <= UNIT_BYTES
        if not fits:
            yield begin, end, group
            begin, group, packing = extent.begin, extent.group, small
        end = extent.end
    yield begin, end, group
