"""When to try again, and when to give up. Pure, with an injected clock and randomness.

Waits double from 0.25 s to 15 s, each between half and the whole of it at random (full and equal jitter:
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), and never less than the source asked for.
What counts is progress: any byte resets the waits, and only `patience_seconds` without one ends the fetch.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from headrace_models.errors import SourceUnavailable

FIRST_SECONDS = 0.25
LONGEST_SECONDS = 15.0

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
        self._last_progress = clock()
        self._num_failures = 0
        self._lock = threading.Lock()

    def progress(self) -> None:
        """A byte has come."""
        with self._lock:
            self._last_progress = self._clock()
            self._num_failures = 0

    def wait_seconds(self, error: SourceUnavailable) -> float:
        """How long to wait before the next try; raises `error` once patience has run out."""
        with self._lock:
            asked = error.retry_after_seconds or 0.0
            if self._clock() + asked - self._last_progress > self._patience_seconds:
                raise error
            ceiling = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(self._num_failures, 16))
            self._num_failures += 1
            return max(asked, ceiling * (0.5 + 0.5 * self._chance()))


def retrying(action: Callable[[], T], patience: Patience, *, wait: Callable[[float], bool]) -> T:
    """The result of `action`, tried again while it raises SourceUnavailable and patience lasts.

    `wait` sleeps so many seconds and says whether to give up all the same (`threading.Event.wait`).
    """
    while True:
        try:
            result = action()
        except SourceUnavailable as error:
            if wait(patience.wait_seconds(error)):
                raise
        else:
            patience.progress()
            return result
