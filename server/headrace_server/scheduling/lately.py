"""What came lately: a sum that forgets."""

import math

HORIZON_SECONDS = 10.0
"""After so long, something counts for 1/e of what it did at first."""

_SHORT = 1e-6  # of a horizon: nothing is forgotten in it


class Lately:
    """A sum of what came, each part weighted by e to the minus (age by horizon). Fed with a total; it begins with the
    first one that it is told."""

    __slots__ = ("_at", "_sum", "_total")

    def __init__(self) -> None:
        self._sum = 0.0
        self._total: float | None = None
        self._at = 0.0

    def skip(self, total: float, now: float) -> None:
        """What is new since the last time does not count, nor does what was taken back."""
        if self._total is not None:
            self.read(self._total, now)
        self._total, self._at = total, max(self._at, now)

    def read(self, total: float, now: float) -> float:
        """The sum, where so much has come in all by now. What is new since the last time counts as if it had come
        evenly; what was taken back is taken off."""
        if self._total is None:
            self._total, self._at = total, now
        age = max(0.0, now - self._at) / HORIZON_SECONDS
        new = total - self._total
        if age > 0 or new:
            kept = math.exp(-age)
            self._sum = max(0.0, self._sum * kept + (new * (1 - kept) / age if new > 0 and age > _SHORT else new))
            self._total, self._at = total, max(self._at, now)
        return self._sum
