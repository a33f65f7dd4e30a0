"""How fast bytes may come, and how fast they do. Clocks are injected."""

import threading
from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 5.0
BURST_SECONDS = 0.25
# A connection that brings a tenth of what the others bring on average is worth a new one.
STRAGGLING_FACTOR = 10


class BandwidthLimit:
    """A token bucket shared by all connections: `bytes_per_second`, with bursts of a quarter of a second."""

    def __init__(
        self,
        bytes_per_second: float | None,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
    ) -> None:
        self._rate = bytes_per_second
        self._clock, self._sleep = clock, sleep
        self._free_at = clock()
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> None:
        """Wait until so many bytes may have come."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - BURST_SECONDS) + num_bytes / self._rate
            wait = self._free_at - now
        if wait > 0:
            self._sleep(wait)


class RateMeter:
    """Bytes per second over the last WINDOW_SECONDS."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)])

    def update(self, total_bytes: int) -> float:
        """`total_bytes` have come so far; the rate."""
        now = self._clock()
        self._samples.append((now, total_bytes))
        while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW_SECONDS:
            self._samples.popleft()
        since, before = self._samples[0]
        return (total_bytes - before) / (now - since) if now > since else 0.0


def is_straggling(
    own_bytes: int, all_bytes: int, *, num_connections: int, seconds: float, after_seconds: float
) -> bool:
    """Whether one of `num_connections` brings far less than its share: a connection that trickles never stalls, and
    keeps what it has taken from everybody else.

    `own_bytes` of `all_bytes` came in `seconds`; before `after_seconds` nobody straggles. Where all are slow nobody
    does either: then it is the link.
    """
    return seconds > after_seconds and own_bytes * num_connections * STRAGGLING_FACTOR < all_bytes
