"""Chunks: together the whole file, none larger than a unit, none across two groups, and found by any byte range."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace_models.chunk_layout import PACK_BYTES, UNIT_BYTES, ChunkLayout, Extent, lay_out

sizes = st.one_of(
    st.integers(0, 3),
    st.integers(0, PACK_BYTES * 2),
    st.sampled_from([PACK_BYTES - 1, PACK_BYTES, UNIT_BYTES - 1, UNIT_BYTES, UNIT_BYTES + 1, 3 * UNIT_BYTES + 5]),
)
shards = st.tuples(
    st.sampled_from([10, 1024, UNIT_BYTES, UNIT_BYTES + 1]),
    st.lists(st.tuples(sizes, st.integers(0, 2)), max_size=40),
)


def lay_out_sizes(data_begin: int, tensors: list[tuple[int, int]]) -> tuple[ChunkLayout, list[Extent]]:
    """The layout of tensors of these sizes and groups, and where they are."""
    extents, begin = [], data_begin
    for size, group in tensors:
        extents.append(Extent(begin, begin + size, group))
        begin += size
    return lay_out(begin, data_begin, extents), extents


def ranges(layout: ChunkLayout) -> list[tuple[int, int]]:
    return [layout.range_of(chunk) for chunk in range(len(layout))]


@given(shard=shards)
def test_chunks_are_the_whole_file_one_behind_the_other(shard: tuple[int, list[tuple[int, int]]]) -> None:
    layout, _ = lay_out_sizes(*shard)
    found = ranges(layout)
    assert found[0][0] == 0
    assert found[-1][1] == layout.size_bytes
    assert all(first[1] == second[0] for first, second in pairwise(found))
    assert all(0 < end - begin <= UNIT_BYTES for begin, end in found)


@given(shard=shards)
def test_no_chunk_straddles_two_groups_or_the_header(shard: tuple[int, list[tuple[int, int]]]) -> None:
    layout, extents = lay_out_sizes(*shard)
    for chunk, (begin, end) in enumerate(ranges(layout)):
        inside = {extent.group for extent in extents if extent.begin < end and extent.end > max(begin, extent.begin)}
        groups = inside | ({None} if begin < shard[0] else set())
        assert groups == {layout.group_of(chunk)}


@given(shard=shards)
def test_a_tensor_is_cut_only_at_units_from_its_beginning(shard: tuple[int, list[tuple[int, int]]]) -> None:
    layout, extents = lay_out_sizes(*shard)
    begins = [begin for begin, _ in ranges(layout)]
    for extent in extents:
        cuts = [begin - extent.begin for begin in begins if extent.begin < begin < extent.end]
        assert cuts == list(range(UNIT_BYTES, extent.end - extent.begin, UNIT_BYTES))


@given(shard=shards)
@example(shard=(10, [(PACK_BYTES - 1, 0)] * 40))
@example(shard=(10, [(PACK_BYTES // 2, 0)] * 33))
def test_small_neighbours_of_one_group_share_a_chunk_that_has_room(shard: tuple[int, list[tuple[int, int]]]) -> None:
    layout, extents = lay_out_sizes(*shard)
    found = ranges(layout)
    present = [extent for extent in extents if extent.begin < extent.end]
    for first, second in pairwise(present):
        small = max(first.end - first.begin, second.end - second.begin) < PACK_BYTES
        chunk = layout.covering(first.begin, first.end)[0]
        has_room = second.end - found[chunk][0] <= UNIT_BYTES
        shared = layout.covering(second.begin, second.end)[0] == chunk
        assert shared == (small and first.group == second.group and has_room)


@given(shard=shards, data=st.data())
def test_covering_and_inside_are_what_their_names_say(
    shard: tuple[int, list[tuple[int, int]]], data: st.DataObject
) -> None:
    layout, _ = lay_out_sizes(*shard)
    found = ranges(layout)
    edges = sorted({edge + near for pair in found for edge in pair for near in (-1, 0, 1)} | {layout.size_bytes // 2})
    points = st.sampled_from([edge for edge in edges if 0 <= edge <= layout.size_bytes])
    begin, end = sorted((data.draw(points), data.draw(points)))
    covering = [number for number, (first, last) in enumerate(found) if first < end and last > begin and begin < end]
    inside = [number for number, (first, last) in enumerate(found) if begin <= first and last <= end]
    assert list(layout.covering(begin, end)) == covering
    assert list(layout.inside(begin, end)) == inside


@given(shard=shards)
@example(shard=(10, [(5, 0), (0, 1), (5, 0)]))
def test_tensors_without_bytes_change_nothing(shard: tuple[int, list[tuple[int, int]]]) -> None:
    data_begin, tensors = shard
    layout, _ = lay_out_sizes(data_begin, tensors)
    without, _ = lay_out_sizes(data_begin, [tensor for tensor in tensors if tensor[0]])
    assert ranges(layout) == ranges(without)
    assert [layout.group_of(n) for n in range(len(layout))] == [without.group_of(n) for n in range(len(without))]


def test_a_shard_without_data_is_its_header() -> None:
    layout, _ = lay_out_sizes(2 * UNIT_BYTES + 1, [])
    assert [layout.group_of(chunk) for chunk in range(len(layout))] == [None, None, None]
    assert ranges(layout)[-1] == (2 * UNIT_BYTES, 2 * UNIT_BYTES + 1)


@pytest.mark.parametrize("begin", [0, 5, 10, 1000])
def test_an_empty_range_is_covered_by_nothing_and_holds_nothing(begin: int) -> None:
    layout, _ = lay_out_sizes(10, [(990, 0)])
    assert not layout.covering(begin, begin)
    assert not layout.inside(begin, begin)
