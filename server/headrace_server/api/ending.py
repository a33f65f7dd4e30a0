"""The way out of a server's process: no more requests, time for those that are open, then stop.

Whoever asks for it (a signal, `/admin/drain`), the end is one: the process belongs to `cli`, which says how it stops;
this object runs the drain and tells when it is over. It owns the tasks of those who asked, so that one who leaves ends
nothing. Used on the event loop only.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from headrace_server.errors import Draining

logger = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_SECONDS = 5.0


class DrainingServer(Protocol):
    """What is drained; see `serving.drain`."""

    @property
    def is_draining(self) -> bool: ...

    @property
    def num_open(self) -> int: ...

    async def run(self, seconds: float) -> int: ...

    def hasten(self) -> None: ...


class Ending:
    """See the module. `seconds` is how long open requests may take where nobody says otherwise; `stop` is called once
    nothing is open, perhaps more than once."""

    def __init__(self, *, seconds: float = 30.0, stop: Callable[[], None] = lambda: None) -> None:
        self._seconds = seconds
        self._stop = stop
        self._drain: DrainingServer | None = None
        self._tasks: set[asyncio.Task[int]] = set()
        self._has_ended = asyncio.Event()

    def attach(self, drain: DrainingServer) -> None:
        """From now on there is something to drain; before, the server stops at once."""
        self._drain = drain

    @property
    def is_draining(self) -> bool:
        """Whether the end has begun."""
        return self._has_ended.is_set() or bool(self._tasks) or (self._drain is not None and self._drain.is_draining)

    @property
    def num_open(self) -> int:
        """Requests that are not over."""
        return 0 if self._drain is None else self._drain.num_open

    async def drain(self, seconds: float | None = None) -> int:
        """Drain the server, let it stop, and return how many requests were cut. Cancelling the call leaves it going."""
        return await asyncio.shield(self.begin(seconds))

    def begin(self, seconds: float | None = None) -> "asyncio.Task[int]":
        """See `drain`; does not wait."""
        task = asyncio.create_task(self._run(self._seconds if seconds is None else seconds))
        self._tasks.add(task)
        return task

    async def _run(self, seconds: float) -> int:
        logger.info("drain_begun", extra={"num_open": self.num_open, "seconds": seconds})
        num_cut = 0 if self._drain is None else await self._drain.run(seconds)
        logger.info("drain_ended", extra={"num_cut": num_cut})
        self.end()
        self._stop()
        return num_cut

    def hasten(self) -> None:
        """Cut what is still open."""
        if self._drain is not None:
            self._drain.hasten()

    def end(self) -> None:
        """The server stops: nobody waits for it any more."""
        self._has_ended.set()

    async def unless_ended(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` of an operator, cancelling it when the server stops.

        Raises:
            Draining: it did.
        """
        task, ended = asyncio.ensure_future(work), asyncio.ensure_future(self._has_ended.wait())
        try:
            await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Draining("the server is shutting down", retry_after_seconds=_RETRY_SECONDS)
            return task.result()
        finally:
            task.cancel()
            ended.cancel()
            await asyncio.gather(task, ended, return_exceptions=True)

    async def close(self) -> None:
        """End what is left of it: the server is gone."""
        self.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
