"""One request on its way to an engine and back, and everything that it holds meanwhile.

An engine that dies takes nothing with it that was not sent: the request takes a lease on the next one and is submitted
again, under the seat that it has. It does so once: a request that was on board of two engines when they died may well
be what killed them; on board is whoever has taken the seat. `cut` ends a request from outside, with an error of the
caller's choice, whatever it waits for.
"""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from headrace_server.domain import Demand, EngineRequest, EventStream, Reply, StreamReply, UnaryReply
from headrace_server.engine.pool import EnginePool
from headrace_server.engine.slot import Lease
from headrace_server.errors import EngineDied, RequestError, RequestQuarantined
from headrace_server.serving.admission import RequestSeat
from headrace_server.serving.answer import written
from headrace_server.serving.drain import Drain

MAX_DEATHS = 2


class _Waiting:
    """A block in which some task waits for the request, and may be cut. Entered for every token, so it is no generator.

    Raises:
        RequestError: the request was cut, inside the block or before it.
    """

    __slots__ = ("_end", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._end: RequestError | None = None

    def __enter__(self) -> None:
        if self._end is not None:
            raise self._end
        self._task = asyncio.current_task()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._end is None or task is None:
            return
        has_gone = task.uncancel() > 0  # whoever waits, too
        # What was told to stop may end in an error of its own, and may be over before it has heard of it.
        if not has_gone and kind is not None and issubclass(kind, (Exception, asyncio.CancelledError)):
            raise self._end from None

    def cut(self, error: RequestError) -> None:
        """End it with this error; only the first cut counts."""
        if self._end is not None:
            return
        self._end = error
        if self._task is not None:
            self._task.cancel()


class Passage:
    """See the module. A `domain.Seat`. Entered when it is made; `release` gives everything back."""

    def __init__(self, request: EngineRequest, pool: EnginePool, seat: RequestSeat, drain: Drain) -> None:
        """Raises Draining where nothing is admitted any more."""
        self._request = request
        self._pool = pool
        self._seat = seat
        self._drain = drain
        self._lease: Lease | None = None
        self._is_on_board = False
        self._num_deaths = 0
        self.waiting = _Waiting()
        drain.enter(self)

    async def reply(self) -> Reply:
        """Submit the request, to another engine where one has died.

        Raises:
            RequestQuarantined: two have.
            RequestError: see `EnginePool.lease` and `Engine.submit`, and what `cut` was given.
        """
        with self.waiting:
            while True:
                try:
                    return await self._attempt()
                except EngineDied as error:
                    self._survive(error)

    async def _attempt(self) -> Reply:
        request = self._request
        lease = self._lease = await self._pool.lease(request.model, request.operation, deadline=request.deadline)
        return await written(request, await lease.engine.submit(request, self))

    async def take(self, demand: Demand) -> None:
        """See `domain.Seat.take`."""
        await self._seat.take(demand)
        self._is_on_board = True

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        """See `domain.Seat.began`."""
        self._seat.began(num_computed_tokens, num_cached_tokens)

    def generated(self, num_tokens: int) -> None:
        """See `domain.Seat.generated`."""
        self._seat.generated(num_tokens)

    async def again(self, error: EngineDied) -> EventStream:
        """Another stream in the place of one that has sent nothing; see `reply`."""
        self._survive(error)
        match await self.reply():
            case StreamReply(events):
                return events
            case UnaryReply():
                raise error

    def _survive(self, error: EngineDied) -> None:
        """The engine is gone; go on without it, or not."""
        self._num_deaths += self._is_on_board
        self._is_on_board = False
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.report_death()
            lease.release()
        if self._num_deaths >= MAX_DEATHS:
            raise RequestQuarantined("the engine died twice while it worked on this request") from error

    def cut(self, error: RequestError) -> None:
        """See `drain.OpenRequest.cut`."""
        self.waiting.cut(error)

    def release(self) -> None:
        """Give back what is held; a second call does nothing."""
        self._seat.release()
        if self._lease is not None:
            self._lease.release()
        self._drain.leave(self)


class PassageStream:
    """A stream that gives back what its request holds when it ends, fails or is closed, and begins again where its
    engine died before the first event. A class, not a generator: a generator that was never started does not run its
    `finally`."""

    def __init__(self, events: EventStream, passage: Passage) -> None:
        self._events = events
        self._passage = passage
        self._has_begun = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            with self._passage.waiting:
                event = await self._events.__anext__()
        except EngineDied as error:
            if self._has_begun:
                self._passage.release()
                raise
            return await self._begin_again(error)
        except BaseException:
            self._passage.release()
            raise
        self._has_begun = True
        return event

    async def _begin_again(self, error: EngineDied) -> bytes:
        try:
            self._events = await self._passage.again(error)
        except BaseException:
            self._passage.release()
            raise
        return await self.__anext__()

    async def aclose(self) -> None:
        """Stop the generation and give everything back."""
        try:
            await self._events.aclose()
        finally:
            self._passage.release()
