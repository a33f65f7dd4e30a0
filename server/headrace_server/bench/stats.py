"""What is computed from samples. Pure: no clock, no files, no printing; randomness is seeded.

Two servers are compared by pairs of samples taken right after one another: a machine that slows down for a minute
slows both halves of a pair, so the median of the pairs' ratios is steadier than the ratio of the two medians. How
steady it is says a bootstrap: the percentile interval of Efron and Tibshirani, "An Introduction to the Bootstrap"
(1993), chapter 13, over the pairs.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

NUM_RESAMPLES = 5000
CONFIDENCE_PERCENT = 95.0


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, linear between neighbours (Hyndman and Fan's type 7).

    Raises:
        ValueError: no values, or `percent` outside 0 to 100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"no {percent}th percentile of {len(values)} values")
    return _percentile_of_sorted(sorted(values), percent)


def _percentile_of_sorted(ordered: Sequence[float], percent: float) -> float:
    place = (len(ordered) - 1) * percent / 100
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle.

    Raises:
        ValueError: no values.
    """
    return percentile(values, 50)


def quantiles(values: Sequence[float], num: int = 101) -> tuple[float, ...]:
    """`num` percentiles, evenly from the lowest value to the highest: a distribution in little space.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no quantiles of nothing")
    ordered = sorted(values)
    return tuple(_percentile_of_sorted(ordered, 100 * number / (num - 1)) for number in range(num))


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """ours / theirs, sample by sample.

    Raises:
        ValueError: there is not one of theirs for each of ours, or one of theirs is not above zero.
    """
    _check_pairs(ours, theirs)
    if any(value <= 0 for value in theirs):
        raise ValueError("a ratio needs samples above zero")
    return tuple(a / b for a, b in zip(ours, theirs, strict=True))


def paired_differences(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """ours - theirs, sample by sample.

    Raises:
        ValueError: there is not one of theirs for each of ours.
    """
    _check_pairs(ours, theirs)
    return tuple(a - b for a, b in zip(ours, theirs, strict=True))


def _check_pairs(ours: Sequence[float], theirs: Sequence[float]) -> None:
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} samples cannot be paired with {len(theirs)}")


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The median of what the pairs say.

    Attributes:
        value: that median.
        confidence: its 95 % bootstrap interval; None where a single pair says nothing about its spread.
        range: from the lowest pair to the highest.
        num_pairs: how many there were.
    """

    value: float
    confidence: Interval | None
    range: Interval
    num_pairs: int


def estimate(pairs: Sequence[float], *, seed: int) -> Estimate:
    """The median of the pairs with its confidence interval; equal seeds give equal intervals.

    Raises:
        ValueError: no pairs.
    """
    return Estimate(
        value=median(pairs),
        confidence=bootstrap_interval(pairs, seed=seed) if len(pairs) > 1 else None,
        range=Interval(min(pairs), max(pairs)),
        num_pairs=len(pairs),
    )


def bootstrap_interval(values: Sequence[float], *, seed: int, num_resamples: int = NUM_RESAMPLES) -> Interval:
    """The percentile interval of the median: where 95 % of the medians of resamples (with replacement) lie.

    Raises:
        ValueError: no values.
    """
    choose = random.Random(seed).choices
    medians = sorted(median(choose(values, k=len(values))) for _ in range(num_resamples)) if values else []
    outside = (100 - CONFIDENCE_PERCENT) / 2
    return Interval(percentile(medians, outside), percentile(medians, 100 - outside))


class Sense(StrEnum):
    """Which way a target points."""

    AT_MOST = "≤"
    AT_LEAST = "≥"


@dataclass(frozen=True, slots=True)
class Target:
    """What an estimate should be; where `confident` is given, the nearer end of its interval should reach that too."""

    sense: Sense
    value: float
    confident: float | None = None

    def met_by(self, found: Estimate) -> bool:
        match self.sense:
            case Sense.AT_MOST:
                worst = found.confidence.high if found.confidence else found.value
                return found.value <= self.value and (self.confident is None or worst <= self.confident)
            case Sense.AT_LEAST:
                worst = found.confidence.low if found.confidence else found.value
                return found.value >= self.value and (self.confident is None or worst >= self.confident)
            case _:
                assert_never(self.sense)
