"""When to try again, and when to give up. Pure, with an injected clock and randomness.

Waits double from 0.25 s to 15 s, each between half and the whole of it at random (full and equal jitter:
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), and never less than the source asked for.
What counts is progress: any byte resets the waits, and only `patience_seconds` without one ends the fetch, counted from
the first question that got none; time in which nothing was asked does not count. Bytes that never become something to
keep (a connection that always breaks in the middle of a chunk) count for FRUITLESS_FAILURES and as long.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from headrace_models.errors import SourceUnavailable

FIRST_SECONDS = 0.25
LONGEST_SECONDS = 15.0
FRUITLESS_FAILURES = 50

T = TypeVar("T")


class Patience:
    """How much longer a source that does not answer is asked. Shared by the threads of one fetch."""

    def __init__(
        self,
        patience_seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._patience_seconds = patience_seconds
        self._clock, self._chance = clock, chance
        self._unanswered_since: float | None = None
        self._fruitless_since: float | None = None
        self._num_failures = 0
        self._num_fruitless = 0
        self._lock = threading.Lock()

    def asked(self) -> None:
        """The source is asked for something now."""
        with self._lock:
            if self._unanswered_since is None:
                self._unanswered_since = self._clock()

    def progress(self) -> None:
        """A byte has come."""
        with self._lock:
            self._unanswered_since = None
            self._num_failures = 0

    def kept(self) -> None:
        """What has come is kept: it is not asked for again."""
        self.progress()
        with self._lock:
            self._fruitless_since = None
            self._num_fruitless = 0

    def wait_seconds(self, error: SourceUnavailable) -> float:
        """How long to wait before the next try; raises `error` once patience has run out."""
        with self._lock:
            asked = error.retry_after_seconds or 0.0
            if self._is_over(self._clock(), asked):
                raise error
            ceiling = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(self._num_failures, 16))
            self._num_failures += 1
            return max(asked, ceiling * (0.5 + 0.5 * self._chance()))

    def _is_over(self, now: float, asked_seconds: float) -> bool:
        """Counts one more failure."""
        self._unanswered_since = now if self._unanswered_since is None else self._unanswered_since
        self._fruitless_since = now if self._fruitless_since is None else self._fruitless_since
        self._num_fruitless += 1
        if now + asked_seconds - self._unanswered_since > self._patience_seconds:
            return True
        return self._num_fruitless > FRUITLESS_FAILURES and now - self._fruitless_since > self._patience_seconds


def retrying(action: Callable[[], T], patience: Patience, *, wait: Callable[[float], bool]) -> T:
    """The result of `action`, tried again while it raises SourceUnavailable and patience lasts.

    `wait` sleeps so many seconds and says whether to give up all the same (`threading.Event.wait`).
    """
    while True:
        patience.asked()
        try:
            result = action()
        except SourceUnavailable as error:
            if wait(patience.wait_seconds(error)):
                raise
        else:
            patience.kept()
            return result
