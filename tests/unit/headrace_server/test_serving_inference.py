"""A request's way to its engine and back, and the lease that travels with it."""

import asyncio

import pytest

from headrace_server.domain import EngineRequest, ModelId, Operation, RequestId, StreamReply, UnaryReply
from headrace_server.engine.pool import EnginePool
from headrace_server.errors import (
    EngineFault,
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    UnsupportedOperation,
)
from headrace_server.serving.admission import OpenAdmission
from headrace_server.serving.inference import Inference
from headrace_server.serving.policy import ModelPolicy
from headrace_server.tenancy.keys import EVERYONE
from tests.fakes.engine import FakeEngine, FakeStream, Hold, frame, unary
from tests.fakes.server import ALIAS, MODEL, build_stage, catalog_entry


def request(model: ModelId = MODEL, *, operation: Operation = Operation.CHAT, **payload: object) -> EngineRequest:
    return EngineRequest(operation, model, RequestId("r"), EVERYONE, {"model": model, **payload})


async def ready(engine: FakeEngine, policy: ModelPolicy | None = None) -> tuple[Inference, EnginePool]:
    runtime = build_stage(engine, policy=policy).runtime
    await runtime.pool.load_all()
    return runtime.inference, runtime.pool


async def test_a_unary_answer_comes_back_whole_and_gives_its_lease_back() -> None:
    inference, pool = await ready(FakeEngine([unary(text="hi")]))
    assert await inference.submit(request()) == unary(text="hi")
    assert pool.status(MODEL).num_leases == 0


async def test_the_lease_is_held_while_the_engine_works() -> None:
    hold = Hold()
    inference, pool = await ready(FakeEngine([hold]))
    call = asyncio.create_task(inference.submit(request()))
    await hold.entered.wait()
    assert pool.status(MODEL).num_leases == 1
    hold.go_on.set()
    assert isinstance(await call, UnaryReply)
    assert pool.status(MODEL).num_leases == 0


async def test_an_alias_becomes_the_models_id_for_the_engine_and_the_rest_arrives_untouched() -> None:
    engine = FakeEngine([unary()])
    inference, _ = await ready(engine)
    original = request(ALIAS, temperature=0.5)
    await inference.submit(original)
    (seen,) = engine.requests
    assert (seen.model, seen.payload) == (MODEL, {"model": MODEL, "temperature": 0.5})
    assert (seen.operation, seen.request_id, seen.caller) == (Operation.CHAT, "r", EVERYONE)
    assert original.payload["model"] == ALIAS


async def test_cancelling_a_call_stops_the_engine_and_gives_the_lease_back() -> None:
    hold = Hold()
    inference, pool = await ready(FakeEngine([hold]))
    call = asyncio.create_task(inference.submit(request()))
    await hold.entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert hold.cancelled.is_set()
    assert pool.status(MODEL).num_leases == 0


@pytest.mark.parametrize("error", [EngineFault("no"), InvalidRequest("too long"), ZeroDivisionError()])
async def test_a_failing_engine_gives_the_lease_back(error: Exception) -> None:
    inference, pool = await ready(FakeEngine([error]))
    with pytest.raises(type(error)):
        await inference.submit(request())
    assert pool.status(MODEL).num_leases == 0


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
    inference, pool = await ready(engine)
    with pytest.raises(error):
        await inference.submit(wrong)
    assert engine.requests == []
    assert pool.status(MODEL).num_leases == 0


async def test_a_model_that_still_loads_refuses() -> None:
    runtime = build_stage(FakeEngine()).runtime
    with pytest.raises(ModelLoading):
        await runtime.inference.submit(request())


async def test_the_policy_is_the_models_own_under_every_name_and_strict_where_there_is_none() -> None:
    lenient, _ = await ready(FakeEngine(lambda _: unary()), ModelPolicy(client_chat_template=True))
    await lenient.submit(request(ALIAS, chat_template="x"))
    pool = EnginePool([catalog_entry()], build=lambda _spec: FakeEngine())
    await pool.load_all()
    with pytest.raises(InvalidRequest):
        await Inference(pool, {}, OpenAdmission()).submit(request(chat_template="x"))


class TestLeasesOfStreams:
    """A stream holds its lease until it is over, however that comes about."""

    async def begin(self, stream: FakeStream) -> tuple[StreamReply, EnginePool]:
        inference, pool = await ready(FakeEngine([stream]))
        reply = await inference.submit(request())
        assert isinstance(reply, StreamReply)
        assert pool.status(MODEL).num_leases == 1
        return reply, pool

    async def test_read_to_its_end(self) -> None:
        stream = FakeStream(frame("a"), frame("b"))
        stream.end()
        reply, pool = await self.begin(stream)
        assert [event async for event in reply.events] == [frame("a"), frame("b")]
        assert pool.status(MODEL).num_leases == 0

    async def test_held_between_events(self) -> None:
        stream = FakeStream(frame("a"))
        reply, pool = await self.begin(stream)
        assert await anext(aiter(reply.events)) == frame("a")
        assert pool.status(MODEL).num_leases == 1
        await reply.events.aclose()
        assert (pool.status(MODEL).num_leases, stream.was_aborted) == (0, True)

    async def test_failed(self) -> None:
        stream = FakeStream()
        stream.fail(EngineFault("no"))
        reply, pool = await self.begin(stream)
        with pytest.raises(EngineFault):
            await anext(aiter(reply.events))
        assert pool.status(MODEL).num_leases == 0

    async def test_closed_without_ever_being_read(self) -> None:
        stream = FakeStream()
        reply, pool = await self.begin(stream)
        await reply.events.aclose()
        assert (pool.status(MODEL).num_leases, stream.was_aborted) == (0, True)

    async def test_a_read_that_is_cancelled(self) -> None:
        stream = FakeStream()
        reply, pool = await self.begin(stream)
        read = asyncio.ensure_future(anext(aiter(reply.events)))
        await stream.asked.wait()
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        await reply.events.aclose()
        assert (pool.status(MODEL).num_leases, stream.was_aborted) == (0, True)

    async def test_closed_twice(self) -> None:
        reply, pool = await self.begin(FakeStream())
        await reply.events.aclose()
        await reply.events.aclose()
        assert pool.status(MODEL).num_leases == 0

    async def test_a_close_that_fails(self) -> None:
        class Jammed(FakeStream):
            async def aclose(self) -> None:
                raise EngineFault("jammed")

        reply, pool = await self.begin(Jammed())
        with pytest.raises(EngineFault):
            await reply.events.aclose()
        assert pool.status(MODEL).num_leases == 0
