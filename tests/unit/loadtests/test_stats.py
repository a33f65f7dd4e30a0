"""loadtests.stats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.stats import Sense, Target, compare, median, paired_ratios, percentile

samples = st.lists(st.floats(min_value=1e-3, max_value=1e6), min_size=1, max_size=50)


def test_a_percentile_lies_linearly_between_its_neighbours() -> None:
    assert percentile([40, 10, 20, 30], 50) == 25
    assert percentile([40, 10, 20, 30], 0) == 10
    assert percentile([40, 10, 20, 30], 100) == 40
    assert percentile(list(range(101)), 99) == 99


def test_the_median_does_not_follow_an_outlier() -> None:
    assert median([1, 1000, 2]) == 2


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1], -1), ([1], 101)])
def test_a_percentile_that_does_not_exist_is_refused(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


@given(samples, st.floats(min_value=0, max_value=100))
def test_a_percentile_stays_within_its_values(values: list[float], percent: float) -> None:
    assert min(values) * (1 - 1e-9) <= percentile(values, percent) <= max(values) * (1 + 1e-9)


def test_ratios_are_taken_pair_by_pair() -> None:
    assert paired_ratios([1, 6], [2, 3]) == (0.5, 2.0)


def test_samples_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="2 samples cannot be paired with 1"):
        paired_ratios([1, 2], [1])


def test_a_ratio_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="above zero"):
        paired_ratios([1], [0])


def test_a_slow_minute_that_hits_both_halves_of_a_pair_does_not_move_the_ratio() -> None:
    """The ratio of the medians would be 110 / 100: what `compare` is there to avoid."""
    compared = compare(ours=[90, 900, 110], theirs=[100, 1000, 100])
    assert (compared.ours, compared.theirs) == (110, 100)
    assert compared.ratio == 0.9
    assert (compared.lowest, compared.highest) == (0.9, 1.1)


@given(samples, st.floats(min_value=0.01, max_value=100))
def test_a_side_that_is_always_so_many_times_the_other_has_that_ratio(theirs: list[float], factor: float) -> None:
    compared = compare([value * factor for value in theirs], theirs)
    assert compared.ratio == pytest.approx(factor)
    assert compared.lowest == pytest.approx(compared.highest)


@pytest.mark.parametrize(
    ("sense", "ratio", "met"),
    [
        (Sense.AT_MOST, 1.05, True),
        (Sense.AT_MOST, 1.0501, False),
        (Sense.AT_LEAST, 1.05, True),
        (Sense.AT_LEAST, 1.0499, False),
    ],
)
def test_a_target_is_met_on_its_own_side_and_at_its_value(sense: Sense, ratio: float, met: bool) -> None:
    assert Target(sense, 1.05).met_by(ratio) is met
