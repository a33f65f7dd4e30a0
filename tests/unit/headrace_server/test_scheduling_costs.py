"""What requests cost, and what is expected of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.domain import Demand
from headrace_server.scheduling.costs import Average, Correction, Habits, TokenWeights, Work

WEIGHTS = TokenWeights()


def test_output_costs_twice_and_cached_prompts_a_tenth_of_computed_ones() -> None:
    assert WEIGHTS.cost(100, 50, 10) == 100 + 5 + 20


def test_an_average_is_of_everything_at_first_and_forgets_later() -> None:
    average = Average()
    for sample in (1.0, 2.0, 6.0):
        average.add(sample)
    assert average.value == pytest.approx(3.0)
    for _ in range(200):
        average.add(10.0)
    assert average.value == pytest.approx(10.0, rel=0.01)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=20))
def test_work_of_which_everything_was_taken_away_is_none(parts: list[tuple[int, int]]) -> None:
    total = Work()
    for computed, output in parts:
        total.add(Work(1, computed, output, computed + 2 * output))
    for computed, output in parts:
        total.add(Work(1, computed, output, computed + 2 * output), -1)
    assert total == Work()


def test_a_tenant_that_has_shown_nothing_is_expected_to_be_like_the_others() -> None:
    everybody = Habits()
    other = Habits(everybody)
    other.joined(300)
    other.began(300, 0)
    other.ended(40, 1)
    assert Habits(everybody).expected_work(None, WEIGHTS) == Work(1, 300, 40, 380)


def test_hits_in_the_prefix_cache_are_a_tenants_own() -> None:
    everybody = Habits()
    lucky = Habits(everybody)
    for _ in range(8):
        lucky.began(25, 75)
    demand = Demand(1000, 10)
    assert lucky.expected_work(demand, WEIGHTS) == Work(1, 250, 10, 250 + 75 + 20)
    assert Habits(everybody).expected_work(demand, WEIGHTS) == Work(1, 1000, 10, 1020)


def test_outputs_are_expected_as_they_were_within_what_the_request_allows() -> None:
    habits = Habits()
    habits.ended(200, 2)
    assert habits.expected_work(Demand(10, None, 3), WEIGHTS).num_output_tokens == 300
    assert habits.expected_work(Demand(10, 50, 3), WEIGHTS).num_output_tokens == 50
    assert habits.expected_work(Demand(10), WEIGHTS, 400).num_output_tokens == 400


def test_the_variation_of_outputs_is_none_where_all_are_alike() -> None:
    alike, varied = Habits(), Habits()
    assert alike.output_variation == 1.0
    for length in (50, 150):
        alike.ended(100, 1)
        varied.ended(length, 1)
    assert alike.output_variation == 0.0
    assert varied.output_variation == pytest.approx(0.5)


def test_waits_are_corrected_by_what_they_were_up_to_twice() -> None:
    correction = Correction()
    correction.learn(None, 5.0)
    correction.learn(0.0, 5.0)
    assert correction.factor == 1.0
    correction.learn(2.0, 3.0)
    assert correction.factor == 1.5
    correction.learn(2.0, 30.0)
    assert correction.factor == 2.0
