"""What tenants were served, as a function of time, and what fairness is measured by. Pure.

Service is what the engine did, in weighted tokens: prompt tokens that were computed count 1, those that were at hand
0.1, output tokens 2. The *service gap* of two tenants over a time in which both have requests waiting is the largest
difference of what they were served in any part of it; for a virtual token counter it is at most 2·max(w_p·L_in, w_q·M)
(Sheng et al., "Fairness in Serving Large Language Models", arXiv 2401.00588, theorem 4.4), where L_in is the longest
prompt and M the token capacity of the batch.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge

PROMPT_WEIGHT, CACHED_WEIGHT, OUTPUT_WEIGHT = 1.0, 0.1, 2.0


class Service:
    """What each tenant was served. Told in the order of time; one task tells."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}
        self._totals: dict[str, list[float]] = {}

    def add(self, tenant: str, at: float, amount: float) -> None:
        """So much more."""
        times, totals = self._times.setdefault(tenant, []), self._totals.setdefault(tenant, [])
        totals.append((totals[-1] if totals else 0.0) + amount)
        times.append(at)

    def until(self, tenant: str, at: float) -> float:
        """All that it was served before that moment."""
        place = bisect_left(self._times.get(tenant, ()), at)
        return self._totals[tenant][place - 1] if place else 0.0

    def between(self, tenant: str, begin: float, end: float) -> float:
        """What it was served from `begin` on and before `end`."""
        return self.until(tenant, end) - self.until(tenant, begin)

    def shares(self, weights: Mapping[str, float], begin: float, end: float) -> dict[str, float]:
        """What each was served in that time for each unit of its weight, of 1. Raises ValueError where that is nothing
        at all."""
        served = {tenant: self.between(tenant, begin, end) / weight for tenant, weight in weights.items()}
        total = sum(served.values())
        if total <= 0:
            raise ValueError("nobody was served anything")
        return {tenant: amount / total for tenant, amount in served.items()}

    def windows(
        self, weights: Mapping[str, float], begin: float, end: float, seconds: float
    ) -> Iterator[dict[str, float]]:
        """`shares` in each whole window of that time."""
        for number in range(int((end - begin) / seconds + 1e-9)):
            yield self.shares(weights, begin + number * seconds, begin + (number + 1) * seconds)

    def gap(self, one: str, other: str, begin: float, end: float) -> float:
        """The largest difference of what both were served in any part of that time."""
        steps = merge(self._steps(one, begin, end, 1), self._steps(other, begin, end, -1))
        difference = lowest = highest = 0.0
        last: float | None = None
        for at, step in steps:
            if at != last:  # what happens in one moment has no order
                lowest, highest, last = min(lowest, difference), max(highest, difference), at
            difference += step
        return max(highest, difference) - min(lowest, difference)

    def _steps(self, tenant: str, begin: float, end: float, sign: int) -> Iterator[tuple[float, float]]:
        times, totals = self._times.get(tenant, []), self._totals.get(tenant, [])
        before = self.until(tenant, begin)
        for place in range(bisect_left(times, begin), bisect_left(times, end)):
            yield times[place], sign * (totals[place] - before)
            before = totals[place]


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index: 1 where all are equal, 1/n where one has everything (DEC-TR-301, 1984).

    Raises:
        ValueError: no shares, or all of them 0.
    """
    squares = sum(share * share for share in shares)
    if squares <= 0:
        raise ValueError("no shares to compare")
    return sum(shares) ** 2 / (len(shares) * squares)


def vtc_bound(longest_prompt_tokens: int, batch_tokens: int) -> float:
    """What the service gap of two tenants stays within; see the module."""
    return 2 * max(PROMPT_WEIGHT * longest_prompt_tokens, OUTPUT_WEIGHT * batch_tokens)
