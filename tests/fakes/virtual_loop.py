"""An event loop on which time passes only while everybody waits for it, and then at once.

For code that waits on the loop's clock (`asyncio.timeout`, `asyncio.sleep`, `loop.time`) and speaks to no socket and no
thread. An hour takes as long as what happens in it. Where everybody waits and nothing will ever happen, the loop says
so instead of standing still.
"""

import asyncio
import functools
import heapq
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

_LATEST = 4e6  # seconds; later, a float has no room for the nanosecond that asyncio adds to the time


class VirtualLoop(asyncio.SelectorEventLoop):
    """Starts at 1000 s, so that a time of 0 is seen to be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0

    def time(self) -> float:
        return self._now

    def stall(self, seconds: float) -> None:
        """Time passes in which this loop does not run, as on a laptop that sleeps."""
        self._now += seconds

    def _run_once(self) -> None:
        self._drop_cancelled()
        if not self._ready:  # type: ignore[attr-defined]
            if not self._scheduled:  # type: ignore[attr-defined]
                raise AssertionError(f"everybody waits for ever: {asyncio.all_tasks(self)}")
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
            assert self._now < _LATEST, "everybody waits for too long"
        super()._run_once()  # type: ignore[misc]

    def _drop_cancelled(self) -> None:
        """Timers that were called off do not make time pass."""
        while self._scheduled and self._scheduled[0].cancelled():  # type: ignore[attr-defined]
            timer = heapq.heappop(self._scheduled)  # type: ignore[attr-defined]
            timer._scheduled = False
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a loop of its own; tasks that it leaves are an error."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_without_leftovers(work))


def virtually(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """A test that is `run_virtually`."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_virtually(test(*args, **kwargs))

    return run


async def turns(num_turns: int = 20) -> None:
    """Let every task go as far as it can without time passing."""
    for _ in range(num_turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], *, every_seconds: float = 0.0) -> None:
    """Return once something has come about, which is looked at each turn, or every so many seconds."""
    while True:
        if condition():
            return
        await asyncio.sleep(every_seconds)


def now() -> float:
    """The running loop's clock."""
    return asyncio.get_running_loop().time()


async def _without_leftovers(work: Coroutine[Any, Any, T]) -> T:
    result = await work
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"
    return result
