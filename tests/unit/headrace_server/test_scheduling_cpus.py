"""Shares of processors: equal, together everything, and the least used one is given out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.scheduling.cpus import as_text, least_used, parsed, share_of

some_cpus = st.lists(st.integers(0, 99_999), unique=True, max_size=40)


@pytest.mark.parametrize(
    ("cpus", "num_shares", "shares"),
    [
        ((0, 1, 2, 3), 2, ((0, 1), (2, 3))),
        ((0, 1, 2, 3), 3, ((0, 1), (2,), (3,))),
        ((0, 2, 4), 2, ((0, 2), (4,))),
        ((0, 1, 2, 3), 1, ((0, 1, 2, 3),)),
        ((0, 1), 5, ((0,), (1,))),
        ((0, 1), 0, ((0, 1),)),
        ((), 2, ()),
    ],
)
def test_processors_are_shared_out_evenly(
    cpus: tuple[int, ...], num_shares: int, shares: tuple[tuple[int, ...], ...]
) -> None:
    assert share_of(cpus, num_shares) == shares


@given(some_cpus.map(sorted), st.integers(-1, 50))
def test_shares_are_neighbours_of_nearly_the_same_size_and_together_everything(cpus: list[int], num: int) -> None:
    shares = share_of(cpus, num)
    assert [cpu for share in shares for cpu in share] == cpus
    assert len(shares) == min(max(num, 1), len(cpus))
    sizes = {len(share) for share in shares}
    assert not sizes or (min(sizes) > 0 and max(sizes) - min(sizes) <= 1)


@pytest.mark.parametrize(
    ("used", "share"),
    [
        ([], (0, 1)),
        ([(0, 1)], (2, 3)),
        ([(0, 1), (2, 3)], (0, 1)),
        ([(0, 1), (2, 3), (0, 1)], (2, 3)),
        ([(0, 1, 2, 3), (1,)], (2, 3)),
        ([(7, 8)], (0, 1)),
    ],
)
def test_the_share_with_the_fewest_users_is_given_out(used: list[tuple[int, ...]], share: tuple[int, ...]) -> None:
    assert least_used(((0, 1), (2, 3)), used) == share


def test_where_there_are_no_shares_none_is_given_out() -> None:
    with pytest.raises(ValueError, match="empty"):
        least_used((), [])


@pytest.mark.parametrize(
    ("cpus", "text"),
    [((0, 1, 2, 8), "0-2,8"), ((5,), "5"), ((), ""), ((0, 2, 4), "0,2,4"), ((0, 1), "0-1"), ((9, 10, 11), "9-11")],
)
def test_lists_of_processors_are_written_as_linux_writes_them(cpus: tuple[int, ...], text: str) -> None:
    assert as_text(cpus) == text
    assert parsed(text) == cpus


def test_order_and_repetitions_do_not_count() -> None:
    assert as_text((8, 1, 0, 1)) == "0-1,8"
    assert parsed("8,0-1,1-1") == (0, 1, 8)


@given(some_cpus)
def test_what_was_written_reads_the_same(cpus: list[int]) -> None:
    assert parsed(as_text(cpus)) == tuple(sorted(cpus))


@pytest.mark.parametrize("text", [",", "1,", "a", "1-", "-1", "3-1", "1-2-3", " 1", "1.0", "²", "٣", "0-999999"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no range of processors"):
        parsed(text)
