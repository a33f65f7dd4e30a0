"""loadtests.origin.link: nobody gets more than the link has, and nothing is lost to late threads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.origin.link import BURST_SECONDS, Link, OpenLink, TokenBucket


class Watch:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def read(self) -> float:
        return self.now


def open_link(link: Link, watch: Watch) -> OpenLink:
    return OpenLink(link, pause=watch.pause, clock=watch.read)


@given(
    rate=st.floats(1e3, 1e9),
    asks=st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 10)), min_size=1, max_size=30),
)
def test_bytes_are_granted_at_the_rate_but_for_one_burst(rate: float, asks: list[tuple[int, float]]) -> None:
    bucket, now, granted = TokenBucket(rate), 0.0, 0
    for num_bytes, later in asks:
        now += later
        granted += num_bytes
        due = bucket.reserve(num_bytes, now)
        assert granted <= rate * (due + BURST_SECONDS) * (1 + 1e-9)
        # As soon as the link is free, and not later.
        assert due <= max(now, 0) + sum(asked for asked, _ in asks) / rate


def test_a_thread_that_wakes_late_catches_up() -> None:
    bucket = TokenBucket(1000)
    first = bucket.reserve(100, 0.0)
    assert bucket.reserve(100, first + BURST_SECONDS / 2) == pytest.approx(first + 0.1)


def test_time_in_which_nothing_was_asked_is_lost_but_for_one_burst() -> None:
    bucket = TokenBucket(1000)
    bucket.reserve(100, 0.0)
    assert bucket.reserve(100, 50.0) == pytest.approx(50.0 + 0.1 - BURST_SECONDS)


def test_all_connections_share_the_rate() -> None:
    watch = Watch()
    link = open_link(Link(bytes_per_second=1000), watch)
    for _ in range(10):
        link.wait_for_turn(100, None)
        link.wait_for_turn(100, None)
    assert watch.now == pytest.approx(100 + 2.0, abs=2 * BURST_SECONDS)


def test_a_connection_may_have_a_rate_of_its_own() -> None:
    watch = Watch()
    link = open_link(Link(bytes_per_second=1000, connection_bytes_per_second=100), watch)
    own = link.connection_bucket()
    for _ in range(5):
        link.wait_for_turn(100, own)
    assert watch.now == pytest.approx(100 + 5.0, abs=2 * BURST_SECONDS)


def test_without_limits_nobody_waits() -> None:
    watch = Watch()
    link = open_link(Link(), watch)
    link.wait_latency()
    link.wait_for_turn(1 << 30, link.connection_bucket())
    assert watch.now == 100


def test_every_answer_waits_for_the_latency() -> None:
    watch = Watch()
    open_link(Link(latency_seconds=0.25), watch).wait_latency()
    assert watch.now == 100.25


def test_a_slow_link_is_shared_in_small_blocks() -> None:
    watch = Watch()
    slow, fast = Link(bytes_per_second=1 << 20), Link()
    assert open_link(slow, watch).block_bytes < open_link(fast, watch).block_bytes


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        TokenBucket(0)
