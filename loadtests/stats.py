"""What is computed from samples. Pure: no clock, no files, no printing.

Two servers are compared by pairs of samples taken right after one another: a machine that slows down for a minute
slows both halves of a pair, so the median of the pairs' ratios is steadier than the ratio of the two medians.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the values lie, linear between neighbours (Hyndman and Fan's type 7).

    Raises:
        ValueError: no values, or `percent` outside 0 to 100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"no {percent}th percentile of {len(values)} values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle.

    Raises:
        ValueError: no values.
    """
    return percentile(values, 50)


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """ours / theirs, sample by sample.

    Raises:
        ValueError: there is not one of theirs for each of ours, or one of theirs is not above zero.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} samples cannot be paired with {len(theirs)}")
    if any(value <= 0 for value in theirs):
        raise ValueError("a ratio needs samples above zero")
    return tuple(a / b for a, b in zip(ours, theirs, strict=True))


class Sense(StrEnum):
    """Which way a target points."""

    AT_MOST = "≤"
    AT_LEAST = "≥"


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio should be."""

    sense: Sense
    ratio: float

    def met_by(self, ratio: float) -> bool:
        match self.sense:
            case Sense.AT_MOST:
                return ratio <= self.ratio
            case Sense.AT_LEAST:
                return ratio >= self.ratio
            case _:
                assert_never(self.sense)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides of one measure. `ratio` is the median of the paired ratios, `lowest` and `highest` their range."""

    ours: float
    theirs: float
    ratio: float
    lowest: float
    highest: float
    num_pairs: int


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Medians of both sides, and of the ratios pair by pair.

    Raises:
        ValueError: as `median` and `paired_ratios`.
    """
    ratios = paired_ratios(ours, theirs)
    return Comparison(median(ours), median(theirs), median(ratios), min(ratios), max(ratios), len(ratios))
