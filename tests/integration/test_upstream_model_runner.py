"""The upstream engine in front of Docker Model Runner (a stand-in of it), over TCP and over Docker's socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from headrace_server.domain import Operation
from headrace_server.engine.upstream_engine import UpstreamEngine
from headrace_server.errors import EngineDown, EngineFault, InvalidRequest, ModelNotFound, UnsupportedOperation
from tests.fakes.engine_requests import MODEL, OpenSeat, document, engine_request
from tests.fakes.model_runner import (
    DIGEST,
    NAME,
    SOCKET_PREFIX,
    FakeModelRunner,
    bad_gateway,
    engine_gone,
    still_loading,
)
from tests.fakes.upstream_server import FakeUpstream, Handler
from tests.fakes.vllm_server import VECTOR, WORDS
from tests.integration.upstream_support import HELLO, chat_stream, engine_before, read_to_the_end, text_of

ANSWER = "".join(WORDS)
COMPOSE_PATH = "/engines/v1/"  # as compose's variable ends


def before(
    runner: FakeModelRunner, *, prefix: str = COMPOSE_PATH, socket_path: Path | None = None, model: str = NAME
) -> AbstractAsyncContextManager[tuple[UpstreamEngine, FakeUpstream]]:
    return engine_before(runner, upstream_model=model, prefix=prefix, socket_path=socket_path)


@pytest.fixture
def runner() -> FakeModelRunner:
    return FakeModelRunner()


@pytest.fixture
async def engine(runner: FakeModelRunner) -> AsyncIterator[UpstreamEngine]:
    async with before(runner) as (running, _upstream):
        yield running


@pytest.mark.parametrize("prefix", ["/engines/v1/", "/engines/v1", "/engines/llama.cpp/v1", "/engines/vllm/v1/"])
async def test_every_form_of_its_address_works(runner: FakeModelRunner, prefix: str) -> None:
    async with before(runner, prefix=prefix) as (engine, upstream):
        reply = await document(engine, Operation.CHAT, messages=HELLO)
    assert reply["choices"][0]["message"]["content"] == ANSWER
    assert upstream.exchanges[-1].path == f"{prefix.rstrip('/')}/chat/completions"
    assert upstream.exchanges[-1].json["model"] == NAME


async def test_dockers_socket_works_as_a_port_does(tmp_path: Path) -> None:
    runner = FakeModelRunner(prefix=SOCKET_PREFIX)
    async with before(runner, prefix=f"{SOCKET_PREFIX}/engines/v1", socket_path=tmp_path / "docker.sock") as (
        engine,
        _,
    ):
        reply = await document(engine, Operation.CHAT, messages=HELLO)
        frames, error = await read_to_the_end(await chat_stream(engine))
    assert reply["choices"][0]["message"]["content"] == ANSWER
    assert (text_of(frames), error) == (ANSWER, None)


async def test_an_answer_names_our_model_and_not_the_digest(engine: UpstreamEngine) -> None:
    reply = await document(engine, Operation.CHAT, messages=HELLO)
    assert reply["model"] == MODEL
    assert DIGEST not in str(reply)


async def test_completions_and_embeddings_are_passed_on(runner: FakeModelRunner, engine: UpstreamEngine) -> None:
    assert (await document(engine, Operation.COMPLETION, prompt="x"))["choices"][0]["text"] == ANSWER
    runner.engine.is_pooling = True
    assert (await document(engine, Operation.EMBEDDING, input="x"))["data"][0]["embedding"] == list(VECTOR)


async def test_the_first_request_waits_for_the_load_and_is_answered(
    runner: FakeModelRunner, engine: UpstreamEngine
) -> None:
    runner.may_load.clear()
    asked = asyncio.ensure_future(chat_stream(engine))
    await runner.is_asked.wait()
    await engine.check()
    assert not asked.done()
    runner.may_load.set()
    frames, error = await read_to_the_end(await asked)
    assert (text_of(frames), error) == (ANSWER, None)


async def test_a_load_that_fails_is_the_servers_fault_and_stays_its_secret(
    runner: FakeModelRunner, engine: UpstreamEngine
) -> None:
    runner.load_failure = "llama.cpp terminated unexpectedly: /models/blobs/sha256/x"
    with pytest.raises(EngineFault) as raised:
        await document(engine, Operation.CHAT, messages=HELLO)
    assert raised.value.message == "the upstream server failed with status 500"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_was_not_pulled_is_an_unknown_model(runner: FakeModelRunner, stream: bool) -> None:
    """It says so in plain text."""
    async with before(runner, model="ai/other") as (engine, _upstream):
        with pytest.raises(ModelNotFound, match="does not have this model"):
            await engine.submit(engine_request(Operation.CHAT, {"messages": HELLO}, stream=stream), OpenSeat())


@pytest.mark.parametrize("operation", [Operation.RESPONSE, Operation.TOKENIZE, Operation.RERANK, Operation.SCORE])
async def test_what_it_has_no_path_for_is_not_served(engine: UpstreamEngine, operation: Operation) -> None:
    with pytest.raises(UnsupportedOperation):
        await document(engine, operation, input="x")


async def test_an_engine_that_it_does_not_have_serves_nothing(runner: FakeModelRunner) -> None:
    async with before(runner, prefix="/engines/sglang/v1") as (engine, _upstream):
        with pytest.raises(UnsupportedOperation):
            await document(engine, Operation.CHAT, messages=HELLO)


async def test_a_runner_that_stops_has_no_capacity(runner: FakeModelRunner, engine: UpstreamEngine) -> None:
    runner.is_stopping = True
    with pytest.raises(EngineDown, match="no capacity now"):
        await document(engine, Operation.CHAT, messages=HELLO)


async def test_an_engine_that_still_loads_is_down_for_now(runner: FakeModelRunner, engine: UpstreamEngine) -> None:
    runner.overriding = still_loading
    with pytest.raises(EngineDown, match="Loading model"):
        await document(engine, Operation.CHAT, messages=HELLO)
    runner.overriding = None
    assert await document(engine, Operation.CHAT, messages=HELLO)


@pytest.mark.parametrize(("handler", "status"), [(engine_gone, 500), (bad_gateway, 502)])
async def test_an_engine_that_went_away_is_a_fault(
    runner: FakeModelRunner, engine: UpstreamEngine, handler: Handler, status: int
) -> None:
    runner.overriding = handler
    with pytest.raises(EngineFault, match=f"failed with status {status}"):
        await document(engine, Operation.CHAT, messages=HELLO)


async def test_a_connection_that_breaks_in_a_stream_is_a_server_that_is_down(
    runner: FakeModelRunner, engine: UpstreamEngine
) -> None:
    runner.engine.drops_after = 3
    frames, error = await read_to_the_end(await chat_stream(engine))
    assert isinstance(error, EngineDown)
    assert text_of(frames) == "".join(WORDS[:2])


async def test_a_client_that_leaves_frees_the_engine_behind_it(runner: FakeModelRunner, engine: UpstreamEngine) -> None:
    runner.engine.stays_open = True
    events = await chat_stream(engine)
    await anext(events)
    await events.aclose()
    await asyncio.wait_for(runner.engine.gone.wait(), 5)


async def test_a_request_that_is_refused_says_why(runner: FakeModelRunner, engine: UpstreamEngine) -> None:
    with pytest.raises(InvalidRequest, match="cannot be greater than max_model_len"):
        await document(engine, Operation.CHAT, messages=HELLO, max_tokens=5000)


async def test_nothing_is_asked_for_but_its_list_and_what_clients_want(runner: FakeModelRunner) -> None:
    async with before(runner) as (engine, upstream):
        await document(engine, Operation.CHAT, messages=HELLO)
        await engine.check()
        await engine.heartbeat()
    assert [(exchange.method, exchange.path) for exchange in upstream.exchanges] == [
        ("GET", "/engines/v1/models"),
        ("POST", "/engines/v1/chat/completions"),
    ]
