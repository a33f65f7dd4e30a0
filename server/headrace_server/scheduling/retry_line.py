"""The line of those that were sent away and told when to come back.

Each is told another time, as far apart as the queue moves, so that they do not all come back at once; who comes back
at its time finds room that was kept for it. Nobody can be recognised: whoever comes once a time has come is taken for
the one that was told it. Times that nobody came for are forgotten.
"""

from collections import deque

SHORTEST_SECONDS = 0.05
LONGEST_SECONDS = 108.0  # with a tenth on top as jitter still under the 120 s at which OpenAI's clients give up
_EARLY_SECONDS = 0.01  # clocks differ
_GRACE_SECONDS = 1.5  # `Retry-After` is in whole seconds, rounded up
_GRACE_SHARE = 0.1  # jitter that is added to what was told


class RetryLine:
    """The times that were told to one tenant's requests of one class."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[tuple[float, float]] = deque()

    def __len__(self) -> int:
        return len(self._times)

    def tell(self, seconds: float, now: float) -> float:
        """The seconds to tell somebody who could come in so many; a time beyond the longest is told to many, and
        nothing is kept for them."""
        told = min(max(seconds, SHORTEST_SECONDS), LONGEST_SECONDS)
        if told < LONGEST_SECONDS:
            self._times.append((now + told, now + told + _GRACE_SECONDS + _GRACE_SHARE * told))
        return told

    def is_expected(self, now: float) -> bool:
        """Whether who comes now was told to; that time is used up."""
        while self._times and self._times[0][1] < now:
            self._times.popleft()
        if not self._times or self._times[0][0] > now + _EARLY_SECONDS:
            return False
        self._times.popleft()
        return True
