"""How long a model waits after it went wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.residency import RestartPolicy
from headrace_server.scheduling.restarts import LONGEST_PAUSE_SECONDS, Restarts


def test_it_is_a_restart_policy() -> None:
    policy: RestartPolicy = Restarts()
    assert policy.died(0.0) == 0.0


def test_failed_loads_are_tried_again_after_pauses_that_double_up_to_five_minutes() -> None:
    restarts = Restarts()
    assert [restarts.load_failed(1000.0 * n) for n in range(7)] == [10, 20, 40, 80, 160, 300, 300]


def test_an_engine_that_died_twice_in_a_row_starts_at_once_and_then_after_pauses() -> None:
    restarts = Restarts()
    pauses = []
    for n in range(9):
        restarts.ready(20.0 * n)
        pauses.append(restarts.died(20.0 * n + 10))
    assert pauses == [0, 0, 10, 20, 40, 80, 160, 300, 300]


def test_deaths_that_come_without_a_start_between_them_count_too() -> None:
    restarts = Restarts()
    assert [restarts.died(float(n)) for n in range(3)] == [0, 0, 10]


@pytest.mark.parametrize(("served_seconds", "pause"), [(299.9, 10.0), (300.0, 0.0), (5000.0, 0.0)])
def test_a_model_that_was_up_for_five_minutes_starts_from_scratch(served_seconds: float, pause: float) -> None:
    restarts = Restarts()
    for _ in range(2):
        restarts.died(0.0)
    restarts.ready(7.0)
    assert restarts.died(7.0 + served_seconds) == pause


def test_from_scratch_means_that_two_restarts_are_free_again() -> None:
    restarts = Restarts(stable_seconds=60.0)
    for _ in range(5):
        restarts.died(0.0)
    restarts.ready(0.0)
    assert [restarts.died(60.0 + n) for n in range(3)] == [0, 0, 10]


def test_time_between_a_death_and_the_next_start_is_no_time_up() -> None:
    restarts = Restarts()
    restarts.ready(0.0)
    assert [restarts.died(10.0), restarts.died(1000.0), restarts.died(2000.0)] == [0, 0, 10]


def test_time_after_a_failed_load_is_no_time_up_either() -> None:
    restarts = Restarts()
    for _ in range(3):
        restarts.died(0.0)
    restarts.ready(0.0)
    assert restarts.load_failed(100.0) == 10.0
    assert restarts.died(400.0) == 20.0


def test_a_failed_load_after_five_minutes_up_forgets_deaths_as_well() -> None:
    restarts = Restarts()
    for _ in range(3):
        restarts.died(0.0)
    restarts.ready(0.0)
    assert restarts.load_failed(400.0) == 10.0
    assert restarts.died(401.0) == 0.0


def test_a_start_forgets_failed_loads_but_not_deaths() -> None:
    restarts = Restarts()
    assert [restarts.died(0.0), restarts.died(0.0)] == [0, 0]
    assert [restarts.load_failed(0.0), restarts.load_failed(10.0)] == [10, 20]
    restarts.ready(30.0)
    assert restarts.load_failed(40.0) == 10.0
    assert restarts.died(50.0) == 10.0


@given(st.lists(st.sampled_from(["load_failed", "died", "ready"]), max_size=80), st.floats(0.0, 400.0))
def test_pauses_are_never_negative_and_never_too_long(events: list[str], gap: float) -> None:
    restarts = Restarts()
    for n, event in enumerate(events):
        pause = getattr(restarts, event)(gap * n)
        assert pause is None or 0.0 <= pause <= LONGEST_PAUSE_SECONDS
        assert event != "load_failed" or pause > 0.0
