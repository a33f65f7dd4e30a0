"""headrace_server.bench.stats: known values, and what must hold for all."""

import random
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.bench.stats import (
    Estimate,
    Interval,
    Sense,
    Target,
    bootstrap_interval,
    estimate,
    median,
    paired_differences,
    paired_ratios,
    percentile,
    quantiles,
)

samples = st.lists(st.floats(min_value=1e-3, max_value=1e6), min_size=1, max_size=30)


@pytest.mark.parametrize(("percent", "value"), [(0, 1.0), (25, 2.0), (50, 3.0), (99, 4.96), (100, 5.0)])
def test_percentiles_are_linear_between_neighbours(percent: float, value: float) -> None:
    assert percentile([5.0, 1.0, 3.0, 2.0, 4.0], percent) == pytest.approx(value)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_there_is_no_percentile_of_nothing_or_outside_of_0_to_100(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


@given(samples)
def test_quantiles_run_from_the_lowest_value_over_the_median_to_the_highest(values: list[float]) -> None:
    found = quantiles(values)
    assert (len(found), found[0], found[-1]) == (101, min(values), max(values))
    assert isclose(found[50], median(values))
    assert all(a <= b or isclose(a, b) for a, b in zip(found, found[1:], strict=False))


def test_pairs_are_compared_one_by_one() -> None:
    assert paired_ratios([1.0, 6.0], [2.0, 3.0]) == (0.5, 2.0)
    assert paired_differences([1.0, 6.0], [2.0, 3.0]) == (-1.0, 3.0)


def test_samples_without_their_other_half_or_of_zero_are_no_ratios() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_ratios([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="above zero"):
        paired_ratios([1.0], [0.0])


def test_a_single_pair_has_no_confidence_interval() -> None:
    assert estimate([1.5], seed=1) == Estimate(1.5, None, Interval(1.5, 1.5), 1)


@given(samples, st.integers(0, 9))
def test_an_interval_lies_between_the_lowest_and_the_highest_value_and_holds_the_median(
    values: list[float], seed: int
) -> None:
    found = bootstrap_interval(values, seed=seed, num_resamples=300)
    assert min(values) <= found.low <= found.high <= max(values)
    assert found.low <= median(values) * (1 + 1e-9)
    assert found.high >= median(values) * (1 - 1e-9)


def test_equal_seeds_give_equal_intervals() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)


def test_the_interval_of_a_median_of_three_reaches_to_both_ends_and_that_of_many_does_not() -> None:
    """Of 27 equally likely resamples of three values, 7 have the lowest one as their median: more than 2.5 %."""
    assert bootstrap_interval([1.0, 2.0, 3.0], seed=0) == Interval(1.0, 3.0)
    many = bootstrap_interval([float(n) for n in range(101)], seed=0)
    assert 30 < many.low < 50 < many.high < 70


def test_the_interval_leaves_out_a_fortieth_on_each_side() -> None:
    """Of nine values, the median of a resample is the lowest in 0.2 %, and one of the lowest two in 3.0 % of cases."""
    assert bootstrap_interval([float(n) for n in range(1, 10)], seed=0) == Interval(2.0, 8.0)


def test_intervals_of_normal_samples_hold_the_true_median_about_19_times_in_20() -> None:
    draw = random.Random(7).gauss
    held = 0
    for trial in range(200):
        found = bootstrap_interval([draw(10.0, 1.0) for _ in range(25)], seed=trial, num_resamples=400)
        held += found.low <= 10.0 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def at(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, Interval(low, high), Interval(low, high), 8)


def test_a_target_is_met_by_the_median_and_where_it_says_so_by_the_interval_too() -> None:
    assert Target(Sense.AT_MOST, 1.05).met_by(at(1.05, 0.9, 2.0))
    assert not Target(Sense.AT_MOST, 1.05).met_by(at(1.06, 0.9, 1.0))
    assert Target(Sense.AT_LEAST, 1.0, confident=0.98).met_by(at(1.01, 0.98, 1.1))
    assert not Target(Sense.AT_LEAST, 1.0, confident=0.98).met_by(at(1.01, 0.97, 1.1))
    assert not Target(Sense.AT_LEAST, 1.0, confident=0.98).met_by(at(0.99, 0.99, 1.1))
    assert not Target(Sense.AT_MOST, 1.0, confident=1.02).met_by(at(0.99, 0.9, 1.03))
