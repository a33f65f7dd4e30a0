"""A sum that forgets."""

import math

import pytest

from headrace_server.scheduling.lately import HORIZON_SECONDS, Lately


def test_what_came_counts_for_less_and_less() -> None:
    lately = Lately()
    assert lately.read(100.0, 0.0) == 100.0
    assert lately.read(100.0, HORIZON_SECONDS) == pytest.approx(100 / math.e)
    assert lately.read(100.0, 10 * HORIZON_SECONDS) < 0.01


def test_a_steady_rate_comes_to_as_much_as_a_horizon_of_it_however_often_it_is_read() -> None:
    for interval in (0.01, 1.0, 7.0):
        lately = Lately()
        now = 0.0
        while now < 12 * HORIZON_SECONDS:
            now += interval
            lately.read(50.0 * now, now)
        assert lately.read(50.0 * now, now) == pytest.approx(50 * HORIZON_SECONDS, rel=1e-3)


def test_a_second_look_at_one_moment_changes_nothing() -> None:
    lately = Lately()
    lately.read(10.0, 1.0)
    first = lately.read(60.0, 2.0)
    assert lately.read(60.0, 2.0) == first
    assert lately.read(70.0, 2.0) == pytest.approx(first + 10)


def test_a_total_that_fell_counts_from_where_it_is() -> None:
    lately = Lately()
    lately.read(100.0, 0.0)
    assert lately.read(0.0, 0.0) == 100.0
    assert lately.read(30.0, 0.0) == pytest.approx(130.0)
