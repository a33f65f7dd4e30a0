"""The link between the origin and its clients: a rate that all connections share, a delay before each answer.

The rate is kept by a token bucket in the form of the generic cell rate algorithm (ITU-T I.371): one number, the time at
which everything granted so far has been sent. Who asks is told when its bytes may be gone; a thread that wakes late
loses nothing, because up to BURST_SECONDS of unused time can be caught up with.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

BURST_SECONDS = 0.004

# Small blocks share the link evenly, large ones cost less: blocks of this time, within these bounds.
_BLOCK_SECONDS = 0.002
_MIN_BLOCK_BYTES = 16 << 10
_MAX_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How fast the origin is. None: no limit. `latency_seconds` pass before the first byte of every answer."""

    bytes_per_second: float | None = None
    connection_bytes_per_second: float | None = None
    latency_seconds: float = 0.0


UNLIMITED = Link()


class TokenBucket:
    """Grants bytes at a rate; may be asked from many threads."""

    def __init__(self, bytes_per_second: float) -> None:
        if bytes_per_second <= 0:
            raise ValueError(f"a link needs a positive rate, not {bytes_per_second}")
        self._rate = bytes_per_second
        self._free_at = -math.inf
        self._lock = threading.Lock()

    def reserve(self, num_bytes: int, now: float) -> float:
        """When `num_bytes` more may have been sent, on the clock of `now` (seconds); first come, first served."""
        with self._lock:
            begin = max(self._free_at, now - BURST_SECONDS)
            self._free_at = begin + num_bytes / self._rate
            return self._free_at


class OpenLink:
    """A link in use. `pause` sleeps for a number of seconds, and raises what it likes when the origin closes."""

    def __init__(
        self, link: Link, *, pause: Callable[[float], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._link, self._pause, self._clock = link, pause, clock
        self._shared = _bucket(link.bytes_per_second)
        rates = [rate for rate in (link.bytes_per_second, link.connection_bytes_per_second) if rate is not None]
        wanted = int(min(rates) * _BLOCK_SECONDS) if rates else _MAX_BLOCK_BYTES
        self.block_bytes = min(max(wanted, _MIN_BLOCK_BYTES), _MAX_BLOCK_BYTES)

    def connection_bucket(self) -> TokenBucket | None:
        """A bucket for one connection, to be given to `wait_for_turn`."""
        return _bucket(self._link.connection_bytes_per_second)

    def wait_latency(self) -> None:
        """Wait as long as the first byte takes."""
        if self._link.latency_seconds > 0:
            self._pause(self._link.latency_seconds)

    def wait_for_turn(self, num_bytes: int, own: TokenBucket | None) -> None:
        """Wait until `num_bytes` may be sent, by the shared rate and the connection's `own`."""
        now = self._clock()
        due = max((bucket.reserve(num_bytes, now) for bucket in (self._shared, own) if bucket is not None), default=now)
        if due > now:
            self._pause(due - now)


def _bucket(rate: float | None) -> TokenBucket | None:
    return None if rate is None else TokenBucket(rate)
