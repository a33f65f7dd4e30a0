"""An event loop on which time passes only while everybody waits for it, and then at once.

For code that waits on the loop's clock (`asyncio.timeout`, `asyncio.sleep`, `loop.time`) and speaks to no socket and no
thread. An hour takes as long as what happens in it. Where everybody waits and nothing will ever happen, the loop says
so instead of standing still.
"""

import asyncio
import heapq
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_BEGINNING = 1000.0  # not 0, so that a time of 0 is seen to be wrong
_LATEST = 4e6  # seconds; later, a float has no room for the nanosecond that asyncio adds to the time


class StandsStill(AssertionError):
    """Everybody waits for something that will not come, or tasks are left behind."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._now = _BEGINNING

    def time(self) -> float:
        return self._now

    def stall(self, seconds: float) -> None:
        """Time passes in which this loop does not run, as on a laptop that sleeps."""
        self._now += seconds

    def _run_once(self) -> None:
        self._drop_cancelled()
        if not self._ready:  # type: ignore[attr-defined]
            if not self._scheduled:  # type: ignore[attr-defined]
                raise StandsStill(f"everybody waits for ever: {asyncio.all_tasks(self)}")
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
            if self._now >= _LATEST:
                raise StandsStill("everybody waits for too long")
        super()._run_once()  # type: ignore[misc]

    def _drop_cancelled(self) -> None:
        """Timers that were called off do not make time pass."""
        while self._scheduled and self._scheduled[0].cancelled():  # type: ignore[attr-defined]
            timer = heapq.heappop(self._scheduled)  # type: ignore[attr-defined]
            timer._scheduled = False
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a loop of its own. Raises StandsStill also where it leaves tasks behind."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_without_leftovers(work))


def now() -> float:
    """The running loop's clock."""
    return asyncio.get_running_loop().time()


async def _without_leftovers(work: Coroutine[Any, Any, T]) -> T:
    result = await work
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        raise StandsStill(f"tasks left behind: {left}")
    return result
