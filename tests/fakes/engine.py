"""An engine whose every answer the test decides, and streams whose every event the test sends.

Nothing here sleeps or guesses: what the code under test does is seen by events (`entered`, `asked`, `closed`) that a
test awaits. `FakeStream` is as strict as an async generator: closing it while somebody reads is an error.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TypeAlias

from headrace_server.domain import (
    Demand,
    EngineReply,
    EngineRequest,
    EngineStats,
    Operation,
    Seat,
    StreamReply,
    UnaryReply,
)
from headrace_server.engine.base import EngineInfo
from headrace_server.errors import EngineDied, EngineDown
from headrace_server.generation import Generation

DONE = b"data: [DONE]\n\n"


def frame(text: str) -> bytes:
    """One event."""
    return b"data: " + json.dumps({"text": text}).encode() + b"\n\n"


class FakeStream:
    """An `EventStream` fed by the test.

    Attributes:
        asked: set while somebody waits for an event.
        closed: set once the stream is over, by its end, its failure, a cancelled read or `aclose`.
        was_aborted: it was over before the test ended it.
    """

    def __init__(self, *events: bytes, steps_to_close: int = 3) -> None:
        """`steps_to_close`: turns of the loop that stopping takes, as in an engine that has to be told."""
        self.asked = asyncio.Event()
        self.closed = asyncio.Event()
        self.was_aborted = False
        self._items: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self._reading = False
        self._steps_to_close = steps_to_close
        for event in events:
            self.send(event)

    def send(self, event: bytes) -> None:
        """The next event."""
        self._items.put_nowait(event)

    def fail(self, error: Exception) -> None:
        """The stream breaks here."""
        self._items.put_nowait(error)

    def end(self) -> None:
        """The stream ends here."""
        self._items.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self.closed.is_set():
            raise StopAsyncIteration
        if self._reading:
            raise RuntimeError("anext(): the stream is already being read")
        self._reading = True
        try:
            return await self._next()
        except asyncio.CancelledError:
            await self._close(aborted=True)
            raise
        finally:
            self._reading = False

    async def _next(self) -> bytes:
        self.asked.set()
        item = await self._items.get()
        self.asked.clear()
        if isinstance(item, bytes):
            return item
        await self._close(aborted=False)
        raise item or StopAsyncIteration

    async def aclose(self) -> None:
        """Stop; an error while somebody reads, as with an async generator."""
        if self._reading:
            raise RuntimeError("aclose(): the stream is being read")
        if not self.closed.is_set():
            await self._close(aborted=True)

    async def _close(self, *, aborted: bool) -> None:
        for _ in range(self._steps_to_close):
            await asyncio.sleep(0)
        self.was_aborted = aborted
        self.closed.set()


class Hold:
    """A submit that waits for the test: `entered` says that it waits, `cancelled` that it was stopped."""

    def __init__(self, reply: UnaryReply | None = None) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.go_on = asyncio.Event()
        self._reply = reply or unary()
        self._error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """The submit ends here, with this."""
        self._error = error
        self.go_on.set()

    async def wait(self) -> UnaryReply:
        """What `FakeEngine.submit` awaits."""
        self.entered.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self._error is not None:
            raise self._error
        return self._reply


def unary(**document: object) -> UnaryReply:
    """A complete JSON answer."""
    return UnaryReply(json.dumps(document).encode())


Answer: TypeAlias = UnaryReply | FakeStream | Generation | Hold | Exception


class FakeEngine:
    """An `Engine` that answers from a list, or by calling a function.

    Attributes:
        requests: everything that was submitted, in order.
        streams: every stream that was handed out.
        starting: set once `start` has been called.
        start_gate, heartbeat_gate, close_gate: if set, `start`, `heartbeat`, `close` wait for it.
        start_error, check_error, close_error: raised by `start`, `check`, `close`.
        current: what `stats` returns.
        num_starts, num_closes, num_heartbeats: calls so far.
        has_ended: set once a `close` has come to its end.
    """

    def __init__(
        self,
        answers: Iterable[Answer] | Callable[[EngineRequest], Answer] = (),
        *,
        operations: Iterable[Operation] = Operation,
        max_model_len: int | None = 4096,
        memory_bytes: int | None = None,
    ) -> None:
        self.requests: list[EngineRequest] = []
        self.streams: list[FakeStream] = []
        self.starting = asyncio.Event()
        self.start_gate: asyncio.Event | None = None
        self.start_error: Exception | None = None
        self.check_error: EngineDown | None = None
        self.close_error: Exception | None = None
        self.current = EngineStats()
        self.num_starts = 0
        self.num_closes = 0
        self.num_heartbeats = 0
        self.heartbeat_gate: asyncio.Event | None = None
        self.close_gate: asyncio.Event | None = None
        self.has_ended = asyncio.Event()
        self._holds: list[Hold] = []
        self._answer = answers if callable(answers) else _in_turn(answers)
        self._info = EngineInfo(frozenset(operations), max_model_len, memory_bytes)

    def answers_with(self, *answers: Answer) -> None:
        """What it answers from now on, in turn."""
        self._answer = _in_turn(answers)

    @property
    def num_open_streams(self) -> int:
        """Streams handed out that are not over."""
        return sum(not stream.closed.is_set() for stream in self.streams)

    @property
    def num_aborts(self) -> int:
        """Streams that were stopped before their end."""
        return sum(stream.was_aborted for stream in self.streams)

    @property
    def is_alive(self) -> bool:
        """Whether it was started and has not been closed."""
        return self.num_starts > 0 and not self.has_ended.is_set()

    def die(self, message: str = "the engine process ended") -> None:
        """From now on it is dead, for everybody whom it serves, too."""
        self.check_error = EngineDied(message)
        for stream in self.streams:
            stream.fail(self.check_error)
        for hold in self._holds:
            hold.fail(self.check_error)

    async def start(self) -> EngineInfo:
        self.num_starts += 1
        self.starting.set()
        if self.start_gate is not None:
            await self.start_gate.wait()
        if self.start_error is not None:
            raise self.start_error
        return self._info

    async def submit(self, request: EngineRequest, seat: Seat) -> EngineReply:
        self.requests.append(request)
        if isinstance(self.check_error, EngineDied):
            raise self.check_error
        await seat.take(Demand(1, 1))
        match self._answer(request):
            case Exception() as error:
                raise error
            case FakeStream() as stream:
                self.streams.append(stream)
                return StreamReply(stream)
            case Hold() as hold:
                self._holds.append(hold)
                return await hold.wait()
            case UnaryReply() | Generation() as reply:
                return reply

    def stats(self) -> EngineStats:
        return self.current

    async def check(self) -> None:
        if self.check_error is not None:
            raise self.check_error

    async def heartbeat(self) -> None:
        self.num_heartbeats += 1
        if self.heartbeat_gate is not None:
            await self.heartbeat_gate.wait()
        if self.check_error is not None:
            raise self.check_error

    async def close(self) -> None:
        self.num_closes += 1
        if self.close_gate is not None:
            await self.close_gate.wait()
        self.has_ended.set()
        if self.close_error is not None:
            raise self.close_error


def _in_turn(answers: Iterable[Answer]) -> Callable[[EngineRequest], Answer]:
    remaining = iter(answers)

    def answer(_request: EngineRequest) -> Answer:
        return next(remaining, None) or AssertionError("the test scripted no further answer")

    return answer
