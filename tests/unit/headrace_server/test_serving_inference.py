"""A request's way to its engine and back, and the lease that travels with it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from headrace_server.domain import EngineRequest, ModelId, Operation, RequestId, StreamReply, UnaryReply
from headrace_server.engine.pool import EnginePool
from headrace_server.errors import (
    DeadlineExpired,
    Draining,
    EngineFault,
    InvalidRequest,
    ModelNotFound,
    UnsupportedOperation,
)
from headrace_server.serving.admission import OpenAdmission
from headrace_server.serving.drain import Drain
from headrace_server.serving.inference import Inference
from headrace_server.serving.policy import ModelPolicy
from headrace_server.tenancy.keys import EVERYONE
from tests.fakes.engine import FakeEngine, FakeStream, Hold, frame, unary
from tests.fakes.server import ALIAS, MODEL, build_stage, catalog_entry, fake_pool, running


def request(model: ModelId = MODEL, *, operation: Operation = Operation.CHAT, **payload: object) -> EngineRequest:
    return EngineRequest(operation, model, RequestId("r"), EVERYONE, {"model": model, **payload})


@asynccontextmanager
async def ready(
    engine: FakeEngine, policy: ModelPolicy | None = None
) -> AsyncIterator[tuple[Inference, EnginePool, Drain]]:
    """A server's parts, whose model is in memory. Nothing is held at the end."""
    runtime = build_stage(engine, policy=policy).runtime
    async with running(runtime.pool) as pool:
        await pool.until_settled()
        yield runtime.inference, pool, runtime.drain
        assert (pool.status(MODEL).num_leases, runtime.drain.num_open) == (0, 0)


async def test_a_unary_answer_comes_back_whole_and_gives_its_lease_back() -> None:
    async with ready(FakeEngine([unary(text="hi")])) as (inference, pool, drain):
        assert await inference.submit(request()) == unary(text="hi")
        assert (pool.status(MODEL).num_leases, drain.num_open) == (0, 0)


async def test_the_lease_is_held_while_the_engine_works() -> None:
    hold = Hold()
    async with ready(FakeEngine([hold])) as (inference, pool, drain):
        call = asyncio.create_task(inference.submit(request()))
        await hold.entered.wait()
        assert (pool.status(MODEL).num_leases, drain.num_open) == (1, 1)
        hold.go_on.set()
        assert isinstance(await call, UnaryReply)


async def test_an_alias_becomes_the_models_id_for_the_engine_and_the_rest_arrives_untouched() -> None:
    engine = FakeEngine([unary()])
    async with ready(engine) as (inference, _, _):
        original = request(ALIAS, temperature=0.5)
        await inference.submit(original)
    (seen,) = engine.requests
    assert (seen.model, seen.payload) == (MODEL, {"model": MODEL, "temperature": 0.5})
    assert (seen.operation, seen.request_id, seen.caller) == (Operation.CHAT, "r", EVERYONE)
    assert original.payload["model"] == ALIAS


async def test_cancelling_a_call_stops_the_engine_and_gives_the_lease_back() -> None:
    hold = Hold()
    async with ready(FakeEngine([hold])) as (inference, _, _):
        call = asyncio.create_task(inference.submit(request()))
        await hold.entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert hold.cancelled.is_set()


@pytest.mark.parametrize("error", [EngineFault("no"), InvalidRequest("too long"), ZeroDivisionError()])
async def test_a_failing_engine_gives_the_lease_back(error: Exception) -> None:
    async with ready(FakeEngine([error])) as (inference, _, _):
        with pytest.raises(type(error)):
            await inference.submit(request())


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (request(ModelId("other")), ModelNotFound),
        (request(operation=Operation.SCORE), UnsupportedOperation),
        (request(chat_template="x"), InvalidRequest),
    ],
)
async def test_what_is_refused_never_reaches_the_engine(wrong: EngineRequest, error: type[Exception]) -> None:
    engine = FakeEngine(operations=[Operation.CHAT])
    async with ready(engine) as (inference, _, _):
        with pytest.raises(error):
            await inference.submit(wrong)
    assert engine.requests == []


async def test_what_can_never_work_is_refused_without_loading_the_model_for_it() -> None:
    engine = FakeEngine()
    runtime = build_stage(engine, load=False).runtime
    async with running(runtime.pool):
        with pytest.raises(InvalidRequest):
            await runtime.inference.submit(request(chat_template="x"))
    assert engine.num_starts == 0


async def test_a_request_for_a_model_that_is_not_in_memory_waits_for_it() -> None:
    engine = FakeEngine([unary(text="hi")])
    engine.start_gate = asyncio.Event()
    runtime = build_stage(engine, load=False).runtime
    async with running(runtime.pool) as pool:
        call = asyncio.create_task(runtime.inference.submit(request()))
        await engine.starting.wait()
        assert (pool.status(MODEL).num_held, runtime.drain.num_open) == (1, 1)
        engine.start_gate.set()
        assert await call == unary(text="hi")


async def test_a_request_waits_for_its_model_till_its_deadline_at_most() -> None:
    engine = FakeEngine()
    engine.start_gate = asyncio.Event()
    runtime = build_stage(engine, load=False).runtime
    async with running(runtime.pool):
        hurried = replace(request(), deadline=asyncio.get_running_loop().time() + 0.01)
        with pytest.raises(DeadlineExpired):
            await runtime.inference.submit(hurried)
        assert runtime.drain.num_open == 0


async def test_once_the_server_drains_nothing_is_admitted() -> None:
    engine = FakeEngine([unary()])
    async with ready(engine) as (inference, _, drain):
        drain.begin()
        with pytest.raises(Draining):
            await inference.submit(request())
    assert engine.requests == []


async def test_the_policy_is_the_models_own_under_every_name_and_strict_where_there_is_none() -> None:
    async with ready(FakeEngine(lambda _: unary()), ModelPolicy(client_chat_template=True)) as (lenient, _, _):
        await lenient.submit(request(ALIAS, chat_template="x"))
    async with running(fake_pool([catalog_entry()], lambda _spec: FakeEngine())) as pool:
        with pytest.raises(InvalidRequest):
            await Inference(pool, {}, OpenAdmission(), Drain()).submit(request(chat_template="x"))


class TestLeasesOfStreams:
    """A stream holds its lease until it is over, however that comes about."""

    @asynccontextmanager
    async def begin(self, stream: FakeStream) -> AsyncIterator[tuple[StreamReply, EnginePool]]:
        async with ready(FakeEngine([stream])) as (inference, pool, drain):
            reply = await inference.submit(request())
            assert isinstance(reply, StreamReply)
            assert (pool.status(MODEL).num_leases, drain.num_open) == (1, 1)
            yield reply, pool

    async def test_read_to_its_end(self) -> None:
        stream = FakeStream(frame("a"), frame("b"))
        stream.end()
        async with self.begin(stream) as (reply, pool):
            assert [event async for event in reply.events] == [frame("a"), frame("b")]
            assert pool.status(MODEL).num_leases == 0

    async def test_held_between_events(self) -> None:
        stream = FakeStream(frame("a"))
        async with self.begin(stream) as (reply, pool):
            assert await anext(aiter(reply.events)) == frame("a")
            assert pool.status(MODEL).num_leases == 1
            await reply.events.aclose()
            assert (pool.status(MODEL).num_leases, stream.was_aborted) == (0, True)

    async def test_failed(self) -> None:
        stream = FakeStream()
        stream.fail(EngineFault("no"))
        async with self.begin(stream) as (reply, pool):
            with pytest.raises(EngineFault):
                await anext(aiter(reply.events))
            assert pool.status(MODEL).num_leases == 0

    async def test_closed_without_ever_being_read(self) -> None:
        stream = FakeStream()
        async with self.begin(stream) as (reply, pool):
            await reply.events.aclose()
            assert (pool.status(MODEL).num_leases, stream.was_aborted) == (0, True)

    async def test_a_read_that_is_cancelled(self) -> None:
        stream = FakeStream()
        async with self.begin(stream) as (reply, pool):
            read = asyncio.ensure_future(anext(aiter(reply.events)))
            await stream.asked.wait()
            read.cancel()
            with pytest.raises(asyncio.CancelledError):
                await read
            await reply.events.aclose()
            assert (pool.status(MODEL).num_leases, stream.was_aborted) == (0, True)

    async def test_closed_twice(self) -> None:
        async with self.begin(FakeStream()) as (reply, pool):
            await reply.events.aclose()
            await reply.events.aclose()
            assert pool.status(MODEL).num_leases == 0

    async def test_a_close_that_fails(self) -> None:
        class Jammed(FakeStream):
            async def aclose(self) -> None:
                raise EngineFault("jammed")

        async with self.begin(Jammed()) as (reply, pool):
            with pytest.raises(EngineFault):
                await reply.events.aclose()
            assert pool.status(MODEL).num_leases == 0
