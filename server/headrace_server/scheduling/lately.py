"""What came lately: a sum that forgets."""

import math

HORIZON_SECONDS = 10.0
"""After so long, something counts for 1/e of what it did at first."""


class Lately:
    """A sum of what came, each part weighted by e to the minus (age by horizon). Fed with a total that grows."""

    __slots__ = ("_at", "_sum", "_total")

    def __init__(self) -> None:
        self._sum = 0.0
        self._total = 0.0
        self._at = 0.0

    def skip(self, total: float, now: float) -> None:
        """What is new since the last time does not count."""
        self.read(self._total, now)
        self._total = total

    def read(self, total: float, now: float) -> float:
        """The sum, where so much has come in all by now. What is new since the last time counts as if it had come
        evenly. A total that has fallen begins again."""
        age = (now - self._at) / HORIZON_SECONDS
        if age <= 0 and total == self._total:
            return self._sum
        new = max(0.0, total - self._total)
        kept = math.exp(-max(0.0, age))
        self._sum = self._sum * kept + (new * (1 - kept) / age if age > _SHORT else new)
        self._total, self._at = total, now
        return self._sum


_SHORT = 1e-6  # of a horizon: nothing is forgotten in it
