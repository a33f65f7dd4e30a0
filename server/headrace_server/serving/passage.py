"""One request on its way to an engine and back, and everything that it holds meanwhile.

An engine that dies takes nothing with it that was not sent: the request takes a lease on the next one, joins the queue
again, in front, and is submitted again. It does so once: a request that was on board of two engines when they died may
well be what killed them; on board is whoever has taken the seat. `cut` ends a request from outside, with an error of
the caller's choice, whatever it waits for. `restart` takes one that is answered in one piece out of its engine, to wait
for its turn once more.
"""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from headrace_server.domain import EngineRequest, EventStream, Reply, StreamReply, UnaryReply
from headrace_server.engine.pool import EnginePool
from headrace_server.engine.slot import Lease
from headrace_server.errors import EngineDied, RequestError, RequestQuarantined
from headrace_server.queueing import Outlook
from headrace_server.serving.admission import Admission, RequestSeat
from headrace_server.serving.answer import written
from headrace_server.serving.drain import Drain

MAX_DEATHS = 2


class _Waiting:
    """A block in which some task waits for the request, and may be cut or told to begin again. Entered for every token,
    so it is no generator.

    Raises:
        RequestError: the request was cut, inside the block or before it.
    """

    __slots__ = ("_end", "_is_restarting", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._end: RequestError | None = None
        self._is_restarting = False

    def __enter__(self) -> None:
        if self._end is not None:
            raise self._end
        self._task = asyncio.current_task()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_restarting:
            self.take_restart()
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

    def restart(self) -> None:
        """Interrupt it, to begin again."""
        if self._task is not None and self._end is None and not self._is_restarting:
            self._is_restarting = True
            self._task.cancel()

    def take_restart(self) -> bool:
        """Whether the interruption was for this, and for nothing else beside it."""
        if not self._is_restarting or self._task is None:
            return False
        self._is_restarting = False
        return self._task.uncancel() == 0


class Passage:
    """See the module. An `admission.Occupant`. Entered when it is made; `answer` or `release` gives everything back."""

    def __init__(self, request: EngineRequest, pool: EnginePool, admission: Admission, drain: Drain) -> None:
        """Raises:
        Draining: nothing is admitted any more.
        RequestError: see `Admission.enter`.
        """
        self._request = request
        self._pool = pool
        self._drain = drain
        self._lease: Lease | None = None
        self._num_deaths = 0
        self.waiting = _Waiting()
        drain.enter(self)
        try:
            self._place = admission.enter(request, self)
        except BaseException:
            drain.leave(self)
            raise
        self._seat = RequestSeat(self._place)

    @property
    def queue_seconds(self) -> float | None:
        """For how long it has waited for its turn; None: it never had to ask."""
        return self._place.queue_seconds

    def outlook(self) -> Outlook | None:
        """What it can expect of the queue; None: it does not wait in one."""
        return self._place.outlook()

    async def answer(self) -> Reply:
        """`reply`, and give everything back with its end."""
        try:
            reply = await self.reply()
        except BaseException:
            self.release()
            raise
        if isinstance(reply, StreamReply):
            return StreamReply(PassageStream(reply.events, self))
        self.release()
        return reply

    async def reply(self) -> Reply:
        """Submit the request, to another engine where one has died, and once more where it had to give way.

        Raises:
            RequestQuarantined: two have.
            RequestError: see `EnginePool.lease` and `Engine.submit`, and what `cut` was given.
        """
        with self.waiting:
            while True:
                try:
                    return await self._attempt()
                except (RequestError, asyncio.CancelledError) as error:
                    if not self._begins_again(error):
                        raise

    def _begins_again(self, error: RequestError | asyncio.CancelledError) -> bool:
        if self.waiting.take_restart():
            self._seat.go_back()
            return True
        if isinstance(error, EngineDied):
            self._survive(error)
            return True
        return False

    async def _attempt(self) -> Reply:
        request = self._request
        if self._lease is None:
            self._lease = await self._pool.lease(request.model, request.operation, deadline=request.deadline)
            self._place.board(self._lease.engine, self._lease.capacity)
        return await written(request, await self._lease.engine.submit(request, self._seat))

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
        self._num_deaths += self._seat.is_taken
        self._seat.lose_engine()
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.report_death()
            lease.release()
        if self._num_deaths >= MAX_DEATHS:
            raise RequestQuarantined("the engine died twice while it worked on this request") from error

    def cut(self, error: RequestError) -> None:
        """See `drain.OpenRequest.cut`."""
        self.waiting.cut(error)

    def restart(self) -> None:
        """See `Occupant.restart`. A stream may have begun, and goes on."""
        if not self._request.stream:
            self.waiting.restart()

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
