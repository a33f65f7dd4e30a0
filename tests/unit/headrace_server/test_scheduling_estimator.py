"""What an engine serves in a second, where it does not say how long its steps take."""

import pytest

from headrace_server.scheduling.estimator import Pace


def test_nothing_is_known_before_half_a_second_of_work() -> None:
    pace = Pace()
    pace.observe(0.0, 0.0, is_busy=True, is_full=True)
    pace.observe(100.0, 0.4, is_busy=True, is_full=True)
    assert (pace.lately, pace.when_full) == (None, None)
    pace.observe(200.0, 1.0, is_busy=True, is_full=True)
    assert (pace.lately, pace.when_full) == (200.0, 200.0)


def test_idle_time_does_not_count() -> None:
    pace = Pace()
    pace.observe(0.0, 0.0, is_busy=False, is_full=False)
    pace.observe(0.0, 100.0, is_busy=True, is_full=False)
    pace.observe(300.0, 101.0, is_busy=True, is_full=False)
    assert pace.lately == 300.0


def test_an_engine_with_little_to_do_is_not_thought_slow() -> None:
    pace = Pace()
    for second in range(10):
        pace.observe(500.0 * second, float(second), is_busy=True, is_full=True)
    for second in range(10, 30):
        pace.observe(4500.0 + 10.0 * (second - 9), float(second), is_busy=True, is_full=False)
    assert pace.lately == pytest.approx(10.0, rel=0.1)
    assert pace.when_full == pytest.approx(500.0)


def test_an_engine_that_becomes_slower_while_others_wait_is_thought_slower() -> None:
    pace = Pace()
    for second in range(10):
        pace.observe(500.0 * second, float(second), is_busy=True, is_full=True)
    for second in range(10, 30):
        pace.observe(4500.0 + 100.0 * (second - 9), float(second), is_busy=True, is_full=True)
    assert pace.when_full == pytest.approx(100.0, rel=0.02)
