"""A sum that forgets."""

import math

import pytest

from headrace_server.scheduling.lately import HORIZON_SECONDS, Lately


def begun(total: float = 0.0, now: float = 0.0) -> Lately:
    lately = Lately()
    assert lately.read(total, now) == 0.0, "what came before it was first asked does not count"
    return lately


def test_what_came_counts_for_less_and_less() -> None:
    lately = begun(1000.0)
    assert lately.read(1100.0, 0.0) == 100.0
    assert lately.read(1100.0, HORIZON_SECONDS) == pytest.approx(100 / math.e)
    assert lately.read(1100.0, 10 * HORIZON_SECONDS) < 0.01


def test_a_steady_rate_comes_to_as_much_as_a_horizon_of_it_however_often_it_is_read() -> None:
    for interval in (0.01, 1.0, 7.0):
        lately = begun()
        now = 0.0
        while now < 12 * HORIZON_SECONDS:
            now += interval
            lately.read(50.0 * now, now)
        assert lately.read(50.0 * now, now) == pytest.approx(50 * HORIZON_SECONDS, rel=1e-3)


def test_a_second_look_at_one_moment_changes_nothing() -> None:
    lately = begun(now=1.0)
    lately.read(10.0, 1.0)
    first = lately.read(60.0, 2.0)
    assert lately.read(60.0, 2.0) == first
    assert lately.read(70.0, 2.0) == pytest.approx(first + 10)


def test_what_is_taken_back_is_taken_off() -> None:
    lately = begun()
    lately.read(100.0, 0.0)
    assert lately.read(40.0, 0.0) == 40.0
    assert lately.read(100.0, 0.0) == 100.0
    assert lately.read(-50.0, 0.0) == 0.0


def test_what_is_skipped_does_not_count() -> None:
    lately = begun()
    lately.read(100.0, 0.0)
    lately.skip(5.0, 0.0)
    assert lately.read(15.0, 0.0) == 110.0


def test_a_look_back_forgets_nothing_twice() -> None:
    lately = begun()
    lately.read(100.0, 0.0)
    first = lately.read(100.0, 5.0)
    assert lately.read(100.0, 4.0) == lately.read(100.0, 5.0) == first
