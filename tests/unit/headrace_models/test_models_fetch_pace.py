"""Bandwidth, rates and patience on a clock that the test moves."""

import pytest

from headrace_models.errors import SourceUnavailable
from headrace_models.fetch.pace import BandwidthLimit, RateMeter, is_straggling
from headrace_models.fetch.patience import FRUITLESS_FAILURES, LONGEST_SECONDS, Patience, retrying


class Clock:
    """Moves only when it is told to, or slept on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False


def test_the_limit_lets_through_its_rate_and_no_more() -> None:
    clock = Clock()
    limit = BandwidthLimit(1000.0, clock=clock, sleep=clock.sleep)
    for _ in range(100):
        limit.take(100)
    assert clock.now - 100.0 == pytest.approx(10.0, abs=0.26)


def test_an_idle_time_is_not_saved_up_beyond_a_burst() -> None:
    clock = Clock()
    limit = BandwidthLimit(1000.0, clock=clock, sleep=clock.sleep)
    clock.now += 60
    before = clock.now
    limit.take(1250)
    assert clock.now - before == pytest.approx(1.0)


def test_without_a_limit_nobody_waits() -> None:
    clock = Clock()
    BandwidthLimit(None, clock=clock, sleep=clock.sleep).take(10**12)
    assert clock.now == 100.0


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    meter = RateMeter(clock=clock)
    total = 0
    for _ in range(20):
        clock.now += 1
        total += 100
        rate = meter.update(total)
    assert rate == pytest.approx(100.0)
    for _ in range(20):
        clock.now += 1
        rate = meter.update(total)
    assert rate == 0.0


def test_waits_double_up_to_the_longest_and_progress_makes_them_short_again() -> None:
    clock = Clock()
    patience = Patience(1e9, clock=clock, chance=lambda: 1.0)
    error = SourceUnavailable("503")
    waits = [patience.wait_seconds(error) for _ in range(9)]
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    patience.progress()
    assert patience.wait_seconds(error) == 0.25


def test_waits_are_spread_by_chance_but_never_shorter_than_the_source_asks() -> None:
    patience = Patience(1e9, clock=Clock(), chance=lambda: 0.0)
    assert patience.wait_seconds(SourceUnavailable("503")) == 0.125
    assert patience.wait_seconds(SourceUnavailable("429", retry_after_seconds=40.0)) == 40.0


def test_patience_ends_when_nothing_has_come_for_long_enough() -> None:
    clock = Clock()
    patience = Patience(60.0, clock=clock)
    patience.asked()
    clock.now += 59
    assert patience.wait_seconds(SourceUnavailable("503")) <= LONGEST_SECONDS
    clock.now += 2
    with pytest.raises(SourceUnavailable, match="503"):
        patience.wait_seconds(SourceUnavailable("503"))


def test_time_in_which_nothing_is_asked_costs_no_patience() -> None:
    clock = Clock()
    patience = Patience(60.0, clock=clock)
    clock.now += 3600
    patience.asked()
    patience.wait_seconds(SourceUnavailable("503"))
    patience.progress()
    clock.now += 3600
    assert patience.wait_seconds(SourceUnavailable("503")) <= LONGEST_SECONDS


def test_bytes_of_which_none_is_ever_kept_end_patience_too() -> None:
    clock = Clock()
    patience = Patience(60.0, clock=clock)

    def break_off(times: int) -> None:
        for _ in range(times):
            patience.progress()
            clock.now += 2
            patience.wait_seconds(SourceUnavailable("broke off"))

    break_off(FRUITLESS_FAILURES)
    patience.kept()
    break_off(FRUITLESS_FAILURES)
    with pytest.raises(SourceUnavailable, match="broke off"):
        break_off(1)


def test_a_source_that_asks_for_more_time_than_there_is_ends_patience_at_once() -> None:
    patience = Patience(60.0, clock=Clock())
    with pytest.raises(SourceUnavailable, match="429"):
        patience.wait_seconds(SourceUnavailable("429", retry_after_seconds=3600.0))


def test_an_action_is_tried_until_it_succeeds() -> None:
    clock = Clock()
    failures = [SourceUnavailable("a"), SourceUnavailable("b")]

    def action() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert retrying(action, Patience(60.0, clock=clock, chance=lambda: 1.0), wait=clock.wait) == "done"
    assert clock.now == 100.75


def test_whoever_is_told_to_stop_does_not_try_again() -> None:
    def action() -> str:
        raise SourceUnavailable("away")

    with pytest.raises(SourceUnavailable, match="away"):
        retrying(action, Patience(60.0, clock=Clock()), wait=lambda _seconds: True)


@pytest.mark.parametrize(
    ("own_bytes", "all_bytes", "seconds", "straggles"),
    [
        (20_000, 200_000_000, 21.0, True),
        (20_000, 200_000_000, 19.0, False),
        (20_000_000, 200_000_000, 21.0, False),
        (20_000, 160_000, 21.0, False),
        (20_000, 20_000, 300.0, False),
    ],
    ids=["far too slow", "not yet", "its share", "all are slow", "alone"],
)
def test_a_connection_straggles_that_brings_next_to_nothing_while_others_do(
    own_bytes: int, all_bytes: int, seconds: float, straggles: bool
) -> None:
    assert straggles is is_straggling(own_bytes, all_bytes, num_connections=8, seconds=seconds, after_seconds=20.0)
