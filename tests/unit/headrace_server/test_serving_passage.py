"""A request's passage: it outlives one engine, it can be cut wherever it is, and it always gives everything back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from headrace_server.domain import (
    EngineCapacity,
    EngineReply,
    EngineRequest,
    ModelId,
    Operation,
    Reply,
    RequestId,
    Seat,
    StreamReply,
    UnaryReply,
)
from headrace_server.errors import (
    Contended,
    Draining,
    EngineDied,
    EngineDown,
    EngineFault,
    InvalidRequest,
    RequestError,
    RequestQuarantined,
)
from headrace_server.generation import Delta
from headrace_server.serving.drain import Drain
from headrace_server.serving.inference import Inference
from headrace_server.tenancy.keys import EVERYONE
from tests.fakes.admission import FakeAdmission
from tests.fakes.engine import FakeEngine, FakeStream, Hold, frame, unary
from tests.fakes.engine_room import EngineRoom, FakeModel
from tests.fakes.generation import FakeDeltas, generation, said
from tests.fakes.virtual_loop import now, turns, until, virtually

A = ModelId("a")
CUT = Draining("the server is shutting down")
DIED = EngineDied("the engine process ended")


class Scene:
    """Requests to one model, whose engines are given in the order in which the pool will build them."""

    def __init__(self, *engines: FakeEngine) -> None:
        self.room = EngineRoom([FakeModel(A)])
        self.room.next(A, *engines)
        self.admission = FakeAdmission()
        self.drain = Drain()
        self.inference = Inference(self.room.pool, {}, self.admission, self.drain)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Scene"]:
        """The pool runs; afterwards nothing is held."""
        async with self.room.open():
            yield self
            assert self.held() == (0, 0, 0)

    def held(self) -> tuple[int, int, int]:
        """Tickets, leases, open requests. Every place that a request has left is over."""
        assert sum(not place.is_over for place in self.admission.places) == self.drain.num_open
        return self.admission.num_tickets, self.room.pool.status(A).num_leases, self.drain.num_open

    def submit(self, *, stream: bool = False) -> asyncio.Task[Reply]:
        request = EngineRequest(Operation.CHAT, A, RequestId("r"), EVERYONE, {"model": A}, stream=stream)
        return asyncio.create_task(self.inference.submit(request))

    async def opened(self) -> StreamReply:
        """A stream of which nothing has been read."""
        reply = await self.submit(stream=True)
        assert isinstance(reply, StreamReply)
        return reply

    def cut(self) -> None:
        """Every open request ends now."""
        for request in list(self.drain._open):
            request.cut(CUT)


def read(reply: StreamReply) -> asyncio.Task[bytes]:
    """Somebody who waits for the next event."""

    async def next_event() -> bytes:
        return await anext(aiter(reply.events))

    return asyncio.create_task(next_event())


def streaming(*events: bytes, is_over: bool = True) -> FakeEngine:
    """An engine that answers with one stream."""
    stream = FakeStream(*events)
    if is_over:
        stream.end()
    return FakeEngine([stream])


# ----------------------------------------------------------------------------------------------- another engine


@virtually
async def test_a_unary_request_outlives_its_engine_and_keeps_its_place() -> None:
    hold, second = Hold(), FakeEngine([unary(text="hi")])
    first = FakeEngine([hold])
    async with Scene(first, second).open() as scene:
        answer = scene.submit()
        await hold.entered.wait()
        assert scene.held() == (1, 1, 1)
        first.die()
        assert await answer == unary(text="hi")
        (place,) = scene.admission.places
        assert (place.num_losses, place.num_returns, len(place.demands)) == (1, 0, 2)
        assert [engine for engine, _ in place.boarded] == [first, second]
        assert second.requests == first.requests
        assert now() == 1000.0  # nobody waited for the watch


@virtually
async def test_a_generation_in_one_piece_begins_again_from_its_start() -> None:
    deltas = FakeDeltas([Delta(0, "lost", 1)])
    deltas.fail(DIED)
    first, second = FakeEngine([generation(deltas)]), FakeEngine([generation(said([Delta(0, "kept", 1, "stop")]))])
    async with Scene(first, second).open() as scene:
        reply = await scene.submit()
        assert isinstance(reply, UnaryReply)
        assert b"kept" in reply.body
        assert b"lost" not in reply.body
        assert len(scene.admission.places) == 1


@pytest.mark.parametrize("is_reading", [True, False])
@virtually
async def test_a_stream_that_has_sent_nothing_outlives_its_engine(is_reading: bool) -> None:
    first, second = streaming(is_over=False), streaming(frame("a"), frame("b"))
    async with Scene(first, second).open() as scene:
        reply = await scene.opened()
        events = aiter(reply.events)
        reading = read(reply) if is_reading else None
        await turns()
        first.die()
        received = [await reading] if reading is not None else []
        received += [event async for event in events]
        assert received == [frame("a"), frame("b")]
        assert len(scene.admission.places) == 1
        assert len(second.requests) == 1


@virtually
async def test_a_stream_whose_engine_dies_before_there_is_one_is_opened_by_the_next() -> None:
    async with Scene(FakeEngine([DIED]), streaming(frame("a"))).open() as scene:
        reply = await scene.opened()
        assert [event async for event in reply.events] == [frame("a")]
        assert len(scene.admission.places) == 1


@virtually
async def test_a_stream_that_has_begun_ends_in_the_error() -> None:
    first, second = streaming(frame("a"), is_over=False), streaming(frame("b"))
    async with Scene(first, second).open() as scene:
        reply = await scene.opened()
        assert await anext(aiter(reply.events)) == frame("a")
        first.die("gone")
        with pytest.raises(EngineDied, match="gone"):
            await anext(aiter(reply.events))
        assert scene.held() == (0, 0, 0)
        assert second.requests == []
        await reply.events.aclose()


@pytest.mark.parametrize("stream", [True, False])
@virtually
async def test_a_request_that_two_engines_died_of_is_refused_and_not_tried_on_a_third(stream: bool) -> None:
    engines = [FakeEngine([DIED]), FakeEngine([DIED]), FakeEngine([unary()])]
    async with Scene(*engines).open() as scene:
        with pytest.raises(RequestQuarantined) as caught:
            await scene.submit(stream=stream)
        assert isinstance(caught.value.__cause__, EngineDied)
        assert [len(engine.requests) for engine in engines] == [1, 1, 0]
        assert (scene.held(), len(scene.admission.places)) == ((0, 0, 0), 1)


@virtually
async def test_a_stream_that_two_engines_died_of_before_its_first_event_is_refused() -> None:
    engines = [streaming(is_over=False), streaming(is_over=False), streaming(frame("a"))]
    async with Scene(*engines).open() as scene:
        reply = await scene.opened()
        reading = read(reply)
        for engine in engines[:2]:
            await until(lambda: bool(engine.streams))  # noqa: B023
            engine.die()
        with pytest.raises(RequestQuarantined):
            await reading
        assert [len(engine.requests) for engine in engines] == [1, 1, 0]
        assert scene.held() == (0, 0, 0)
        await reply.events.aclose()


@virtually
async def test_an_engine_that_died_before_the_request_was_on_board_is_not_held_against_it() -> None:
    dead = FakeEngine()
    hold = Hold()
    second, third = FakeEngine([hold]), FakeEngine([unary(text="hi")])
    async with Scene(dead, second, third).open() as scene:
        (await scene.room.pool.lease(A, Operation.CHAT)).release()
        dead.die()  # and nobody has looked at it yet
        answer = scene.submit()
        await hold.entered.wait()
        second.die()
        assert await answer == unary(text="hi")
        assert [len(engine.requests) for engine in (dead, second, third)] == [1, 1, 1]


@virtually
async def test_an_engine_that_died_with_the_request_does_not_make_the_next_one_count_before_it_is_on_board() -> None:
    dead = FakeEngine()
    dead.check_error = DIED
    engines = [FakeEngine([DIED]), dead, FakeEngine([unary(text="hi")])]
    async with Scene(*engines).open() as scene:
        assert await scene.submit() == unary(text="hi")
        assert [len(engine.requests) for engine in engines] == [1, 1, 1]


@virtually
async def test_a_seat_that_was_refused_is_the_answer_whatever_becomes_of_the_engine() -> None:
    engine = FakeEngine([unary()])
    async with Scene(engine).open() as scene:
        scene.admission.join_error = Contended("others are first")
        with pytest.raises(Contended):
            await scene.submit()
        assert len(scene.room.engines(A)) == 1


@pytest.mark.parametrize("error", [EngineDown("no route"), EngineFault("no"), InvalidRequest("no")])
@virtually
async def test_other_failures_are_the_answer(error: Exception) -> None:
    engine, next_engine = FakeEngine([error]), FakeEngine()
    async with Scene(engine, next_engine).open() as scene:
        with pytest.raises(type(error)):
            await scene.submit()
        assert scene.held() == (0, 0, 0)
        assert next_engine.num_starts == 0


@virtually
async def test_a_model_that_does_not_come_back_refuses_those_who_were_on_board() -> None:
    hold, broken = Hold(), FakeEngine()
    broken.start_error = EngineFault("no memory left")
    first = FakeEngine([hold])
    async with Scene(first, broken).open() as scene:
        answer = scene.submit()
        await hold.entered.wait()
        first.die()
        with pytest.raises(EngineDown, match="tried again"):
            await answer
        assert scene.held() == (0, 0, 0)


@virtually
async def test_an_answer_in_one_piece_where_a_stream_was_to_begin_again_is_no_answer() -> None:
    first = streaming(is_over=False)
    async with Scene(first, FakeEngine([unary()])).open() as scene:
        reply = await scene.opened()
        first.die()
        with pytest.raises(EngineDied):
            await anext(aiter(reply.events))
        assert scene.held() == (0, 0, 0)
        await reply.events.aclose()


# ---------------------------------------------------------------------------------------------------------- cuts


def gated() -> FakeEngine:
    engine = FakeEngine()
    engine.start_gate = asyncio.Event()
    return engine


class Deaf(FakeEngine):
    """Its submit comes to its end although it was told to stop."""

    async def submit(self, request: EngineRequest, seat: Seat) -> EngineReply:
        try:
            return await super().submit(request, seat)
        except asyncio.CancelledError:
            raise EngineFault("stopped") from None


async def _waiting_for_the_model(scene: Scene) -> asyncio.Task[object]:
    scene.room.next(A, gated())
    return scene.submit()


async def _waiting_for_the_seat(scene: Scene) -> asyncio.Task[object]:
    scene.admission.is_open = False
    return scene.submit()


async def _in_the_engine(scene: Scene) -> asyncio.Task[object]:
    scene.room.next(A, FakeEngine([Hold()]))
    return scene.submit()


async def _in_a_generation(scene: Scene) -> asyncio.Task[object]:
    scene.room.next(A, FakeEngine([generation(FakeDeltas([Delta(0, "a", 1)]))]))
    return scene.submit()


async def _before_the_first_event(scene: Scene) -> asyncio.Task[object]:
    scene.room.next(A, streaming(is_over=False))
    return read(await scene.opened())


async def _between_events(scene: Scene) -> asyncio.Task[object]:
    scene.room.next(A, streaming(frame("a"), is_over=False))
    reply = await scene.opened()
    await anext(aiter(reply.events))
    return read(reply)


async def _waiting_for_another_engine(scene: Scene) -> asyncio.Task[object]:
    first = streaming(is_over=False)
    scene.room.next(A, first, gated())
    reading = read(await scene.opened())
    await turns()
    first.die()
    return reading


STAGES = [
    _waiting_for_the_model,
    _waiting_for_the_seat,
    _in_the_engine,
    _in_a_generation,
    _before_the_first_event,
    _between_events,
    _waiting_for_another_engine,
]
each_stage = pytest.mark.parametrize("begin", STAGES, ids=lambda stage: stage.__name__.strip("_"))


@each_stage
@pytest.mark.parametrize("num_cuts", [1, 2])
@virtually
async def test_a_request_that_is_cut_ends_in_that_error_wherever_it_is(
    begin: Callable[[Scene], "asyncio.Future[asyncio.Task[object]]"], num_cuts: int
) -> None:
    async with Scene().open() as scene:
        request = await begin(scene)
        await turns()
        assert not request.done()
        for _ in range(num_cuts):
            scene.cut()
        with pytest.raises(Draining) as caught:
            await request
        assert caught.value is CUT
        assert request.cancelling() == 0
        assert scene.held() == (0, 0, 0)
        scene.cut()


@each_stage
@pytest.mark.parametrize("is_cut_first", [True, False])
@virtually
async def test_a_client_that_leaves_in_the_moment_of_the_cut_is_gone(
    begin: Callable[[Scene], "asyncio.Future[asyncio.Task[object]]"], is_cut_first: bool
) -> None:
    async with Scene().open() as scene:
        request = await begin(scene)
        await turns()
        if is_cut_first:
            scene.cut()
        request.cancel()
        if not is_cut_first:
            scene.cut()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert request.cancelled()
        assert scene.held() == (0, 0, 0)


@each_stage
@virtually
async def test_a_client_that_leaves_gives_everything_back(
    begin: Callable[[Scene], "asyncio.Future[asyncio.Task[object]]"],
) -> None:
    async with Scene().open() as scene:
        request = await begin(scene)
        await turns()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert scene.held() == (0, 0, 0)


@pytest.mark.parametrize("num_read", [0, 1])
@virtually
async def test_a_stream_that_is_cut_while_nobody_reads_ends_at_the_next_reading(num_read: int) -> None:
    engine = streaming(frame("a"), frame("b"), is_over=False)
    async with Scene(engine).open() as scene:
        reply = await scene.opened()
        for _ in range(num_read):
            await anext(aiter(reply.events))
        scene.cut()
        scene.cut()
        await asyncio.sleep(100)
        assert scene.held() == (1, 1, 1)
        with pytest.raises(Draining) as caught:
            await anext(aiter(reply.events))
        assert caught.value is CUT
        await reply.events.aclose()
        assert engine.streams[0].was_aborted


@virtually
async def test_a_stream_that_is_cut_and_closed_without_being_read_gives_everything_back() -> None:
    engine = streaming(frame("a"), is_over=False)
    async with Scene(engine).open() as scene:
        reply = await scene.opened()
        scene.cut()
        await reply.events.aclose()
        assert engine.streams[0].was_aborted
        assert scene.held() == (0, 0, 0)


@pytest.mark.parametrize("num_turns", range(12))
@pytest.mark.parametrize("is_model_cold", [True, False])
@virtually
async def test_a_cut_at_any_moment_of_a_short_request_is_heard_or_comes_too_late(
    num_turns: int, is_model_cold: bool
) -> None:
    async with Scene(FakeEngine([unary(text="hi")])).open() as scene:
        if not is_model_cold:
            (await scene.room.pool.lease(A, Operation.CHAT)).release()
        answer = scene.submit()
        await turns(num_turns)
        scene.cut()
        (result,) = await asyncio.gather(answer, return_exceptions=True)
        assert result is CUT or result == unary(text="hi")
        assert scene.held() == (0, 0, 0)


@pytest.mark.parametrize("num_turns", range(12))
@virtually
async def test_a_cut_at_the_moment_of_an_event_loses_the_event_or_comes_with_the_next(num_turns: int) -> None:
    engine = streaming(is_over=False)
    async with Scene(engine).open() as scene:
        reply = await scene.opened()
        reading = read(reply)
        await turns()
        asyncio.get_running_loop().call_soon(engine.streams[0].send, frame("a"))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        scene.cut()
        (result,) = await asyncio.gather(reading, return_exceptions=True)
        if result is not CUT:
            assert result == frame("a")
            with pytest.raises(Draining):
                await anext(aiter(reply.events))
        await reply.events.aclose()
        assert scene.held() == (0, 0, 0)


@virtually
async def test_an_engine_that_answers_a_cancellation_with_an_error_of_its_own_does_not_hide_the_cut() -> None:
    async with Scene(Deaf([Hold()])).open() as scene:
        answer = scene.submit()
        await turns()
        scene.cut()
        with pytest.raises(RequestError) as caught:
            await answer
        assert caught.value is CUT
        assert answer.cancelling() == 0
        assert scene.held() == (0, 0, 0)


@virtually
async def test_a_server_that_drains_admits_nobody_and_asks_nobody() -> None:
    engine = FakeEngine([unary()])
    async with Scene(engine).open() as scene:
        scene.drain.begin()
        with pytest.raises(Draining):
            await scene.submit()
        assert (engine.num_starts, scene.held()) == (0, (0, 0, 0))


@virtually
async def test_a_drain_lets_held_requests_and_streams_end_and_cuts_the_rest() -> None:
    first = FakeEngine(lambda request: FakeStream(frame("a")) if request.stream else unary(text="hi"))
    first.start_gate = asyncio.Event()
    async with Scene(first).open() as scene:
        held, streamed = scene.submit(), scene.submit(stream=True)
        await turns()
        draining = asyncio.create_task(scene.drain.run(30.0))
        await asyncio.sleep(10)
        first.start_gate.set()
        assert await held == unary(text="hi")
        reply = await streamed
        assert isinstance(reply, StreamReply)
        assert await anext(aiter(reply.events)) == frame("a")
        with pytest.raises(Draining):
            await anext(aiter(reply.events))
        assert now() == 1030.0
        assert await draining == 1
        await reply.events.aclose()


# ---------------------------------------------------------------------------------------------- door and queue


@virtually
async def test_who_is_turned_away_at_the_door_gets_no_lease_and_loads_no_model() -> None:
    engine = FakeEngine([unary()])
    async with Scene(engine).open() as scene:
        scene.admission.door_error = Contended("too many")
        with pytest.raises(Contended):
            await scene.submit()
        assert (engine.num_starts, scene.held()) == (0, (0, 0, 0))


@virtually
async def test_a_request_is_at_the_door_before_it_has_a_lease_and_is_told_of_its_engine_before_it_joins() -> None:
    engine = FakeEngine([unary(text="hi")])
    engine.start_gate = asyncio.Event()
    async with Scene(engine).open() as scene:
        answer = scene.submit()
        await turns()
        (place,) = scene.admission.places
        assert (place.boarded, place.demands) == ([], [])
        engine.start_gate.set()
        assert await answer == unary(text="hi")
        assert [boarded for boarded, _ in place.boarded] == [engine]


@virtually
async def test_what_the_engine_says_on_the_seat_reaches_the_place() -> None:
    class Telling(FakeEngine):
        async def submit(self, request: EngineRequest, seat: Seat) -> EngineReply:
            reply = await super().submit(request, seat)
            seat.began(3, 2)
            seat.generated(4)
            return reply

    async with Scene(Telling([unary()])).open() as scene:
        await scene.submit()
        assert scene.admission.places[0].said == [(3, 2), 4]


# --------------------------------------------------------------------------------------------------- preemption


@pytest.mark.parametrize("begin", [_waiting_for_the_seat, _in_the_engine, _in_a_generation])
@virtually
async def test_a_request_that_gives_way_leaves_the_engine_and_begins_again_on_the_same_lease(
    begin: Callable[[Scene], "asyncio.Future[asyncio.Task[object]]"],
) -> None:
    async with Scene().open() as scene:
        request = await begin(scene)
        await turns()
        (place,) = scene.admission.places
        engine = scene.room.engine(A)
        engine.answers_with(unary(text="hi"))
        scene.admission.is_open = False
        place.occupant.restart()
        place.occupant.restart()
        await turns()
        assert (place.num_returns, place.num_losses, len(place.demands)) == (1, 0, 2)
        assert scene.held() == (0, 1, 1)
        scene.admission.let_in()
        assert await request == unary(text="hi")
        assert request.cancelling() == 0
        assert (len(place.boarded), len(engine.requests)) == (1, 2)


@virtually
async def test_giving_way_is_not_held_against_a_request_whose_engine_dies() -> None:
    first, second = Hold(), Hold()
    engine = FakeEngine([first, second])
    async with Scene(engine, FakeEngine([unary(text="hi")])).open() as scene:
        request = scene.submit()
        await first.entered.wait()
        scene.admission.places[0].occupant.restart()
        await second.entered.wait()
        engine.die()
        assert await request == unary(text="hi")


@virtually
async def test_an_engine_that_answers_an_interruption_with_an_error_of_its_own_does_not_end_the_request() -> None:
    async with Scene(Deaf([Hold(), unary(text="hi")])).open() as scene:
        request = scene.submit()
        await turns()
        scene.admission.places[0].occupant.restart()
        assert await request == unary(text="hi")


@virtually
async def test_a_reply_that_an_interruption_could_not_stop_is_the_answer() -> None:
    class Stubborn(FakeEngine):
        async def submit(self, request: EngineRequest, seat: Seat) -> EngineReply:
            try:
                return await super().submit(request, seat)
            except asyncio.CancelledError:
                return unary(text="all the same")

    async with Scene(Stubborn([Hold()])).open() as scene:
        request = scene.submit()
        await turns()
        scene.admission.places[0].occupant.restart()
        assert await request == unary(text="all the same")
        assert request.cancelling() == 0


@pytest.mark.parametrize("is_restarted_first", [True, False])
@virtually
async def test_a_request_that_is_cut_in_the_moment_of_its_interruption_ends(is_restarted_first: bool) -> None:
    async with Scene(FakeEngine([Hold(), unary()])).open() as scene:
        request = scene.submit()
        await turns()
        (place,) = scene.admission.places
        if is_restarted_first:
            place.occupant.restart()
        scene.cut()
        place.occupant.restart()
        with pytest.raises(Draining) as caught:
            await request
        assert caught.value is CUT
        assert (request.cancelling(), place.num_returns) == (0, 0)


@virtually
async def test_a_client_that_leaves_in_the_moment_of_an_interruption_is_gone() -> None:
    async with Scene(FakeEngine([Hold(), unary()])).open() as scene:
        request = scene.submit()
        await turns()
        scene.admission.places[0].occupant.restart()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert scene.held() == (0, 0, 0)


@virtually
async def test_a_stream_is_never_interrupted() -> None:
    engine = streaming(frame("a"), frame("b"))
    async with Scene(engine).open() as scene:
        reply = await scene.opened()
        events = aiter(reply.events)
        scene.admission.places[0].occupant.restart()
        assert await anext(events) == frame("a")
        reading = read(reply)
        scene.admission.places[0].occupant.restart()
        assert await reading == frame("b")
        assert [event async for event in events] == []


@virtually
async def test_a_request_that_is_over_is_not_interrupted() -> None:
    async with Scene(FakeEngine([unary()])).open() as scene:
        await scene.submit()
        scene.admission.places[0].occupant.restart()
        await turns()
        assert scene.admission.places[0].num_returns == 0


@virtually
async def test_a_capacity_that_nobody_knows_is_unknown() -> None:
    async with Scene(FakeEngine([unary()])).open() as scene:
        await scene.submit()
        assert [capacity for _, capacity in scene.admission.places[0].boarded] == [EngineCapacity()]
