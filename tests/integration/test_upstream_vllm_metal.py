"""The upstream engine in front of vLLM's own server, which is what vllm-metal is on a Mac (a stand-in of it)."""

import asyncio
from collections.abc import AsyncIterator
from socket import AF_INET, SOCK_STREAM, socket

import pytest

from headrace_server.domain import Operation, StreamReply
from headrace_server.engine.base import EngineSpec
from headrace_server.engine.upstream_engine import UpstreamEngine
from headrace_server.errors import EngineDown, EngineFault, InvalidRequest, ModelNotFound, UnsupportedOperation
from tests.fakes.engine_requests import MODEL, OpenSeat, document, engine_request, streamed
from tests.fakes.upstream_server import FakeUpstream, serving
from tests.fakes.vllm_server import NUM_PROMPT_TOKENS, VECTOR, WORDS, FakeVllm
from tests.integration.upstream_support import HELLO, chat_stream, engine_before, read_to_the_end, text_of

NAME = "mlx-community/Qwen3-0.6B-4bit"
ANSWER = "".join(WORDS)


@pytest.fixture
def vllm() -> FakeVllm:
    return FakeVllm(served_names=(NAME,))


@pytest.fixture
async def engine(vllm: FakeVllm) -> AsyncIterator[UpstreamEngine]:
    async with engine_before(vllm, upstream_model=NAME) as (running, _upstream):
        yield running


async def test_a_start_learns_the_context_length(vllm: FakeVllm) -> None:
    async with serving(FakeUpstream(vllm, models=vllm)) as url:
        engine = UpstreamEngine(EngineSpec(MODEL, "upstream", url=url, arguments={"upstream_model": NAME}))
        assert (await engine.start()).max_model_len == 4096
        await engine.close()


async def test_a_chat_is_answered_under_our_name(engine: UpstreamEngine) -> None:
    reply = await document(engine, Operation.CHAT, messages=HELLO)
    assert (reply["model"], reply["choices"][0]["message"]["content"]) == (MODEL, ANSWER)
    assert engine.stats().generation_tokens_total == len(WORDS)


async def test_a_completion_is_answered(engine: UpstreamEngine) -> None:
    assert (await document(engine, Operation.COMPLETION, prompt="x"))["choices"][0]["text"] == ANSWER


@pytest.mark.parametrize("operation", [Operation.CHAT, Operation.COMPLETION])
async def test_a_stream_ends_in_done_and_what_it_used_is_counted(engine: UpstreamEngine, operation: Operation) -> None:
    prompt: dict[str, object] = {"messages": HELLO} if operation is Operation.CHAT else {"prompt": "x"}
    seat = OpenSeat()
    reply = await engine.submit(engine_request(operation, prompt, stream=True), seat)
    assert isinstance(reply, StreamReply)
    frames, error = await read_to_the_end(reply.events)
    assert (text_of(frames), frames[-1].data, error) == (ANSWER, "[DONE]", None)
    assert all(frame.data == "[DONE]" or frame.data["choices"] for frame in frames), "nobody asked for the usage"
    assert (seat.prompts, seat.num_generated) == ([(NUM_PROMPT_TOKENS, 0)], len(WORDS))


async def test_who_asks_for_the_usage_of_a_stream_gets_it(engine: UpstreamEngine) -> None:
    frames = await streamed(engine, Operation.CHAT, messages=HELLO, stream_options={"include_usage": True})
    assert [frame.data["usage"]["completion_tokens"] for frame in frames[-2:-1]] == [len(WORDS)]


async def test_embeddings_need_a_server_for_them(vllm: FakeVllm, engine: UpstreamEngine) -> None:
    with pytest.raises(UnsupportedOperation):
        await document(engine, Operation.EMBEDDING, input="x")
    vllm.is_pooling = True
    reply = await document(engine, Operation.EMBEDDING, input="x")
    assert reply["data"][0]["embedding"] == list(VECTOR)
    with pytest.raises(UnsupportedOperation):
        await document(engine, Operation.CHAT, messages=HELLO)


async def test_a_name_that_it_does_not_serve_is_an_unknown_model(vllm: FakeVllm) -> None:
    async with engine_before(vllm, upstream_model="mlx-community/other") as (engine, _upstream):
        with pytest.raises(ModelNotFound) as raised:
            await document(engine, Operation.CHAT, messages=HELLO)
    assert raised.value.message == "the upstream server does not have this model"


async def test_what_it_says_of_a_bad_request_reaches_the_client(engine: UpstreamEngine) -> None:
    with pytest.raises(InvalidRequest, match="cannot be greater than max_model_len=4096") as raised:
        await document(engine, Operation.CHAT, messages=HELLO, max_tokens=5000)
    assert raised.value.param == "max_tokens"


async def test_a_client_that_leaves_a_stream_frees_the_server(vllm: FakeVllm, engine: UpstreamEngine) -> None:
    vllm.stays_open = True
    events = await chat_stream(engine)
    await anext(events)
    assert (vllm.num_running, engine.stats().num_requests_running) == (1, 1)
    await events.aclose()
    await asyncio.wait_for(vllm.gone.wait(), 5)
    assert engine.stats().num_requests_running == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_byte_frees_the_server(
    vllm: FakeVllm, engine: UpstreamEngine, stream: bool
) -> None:
    vllm.may_begin.clear()
    request = engine_request(Operation.CHAT, {"messages": HELLO}, stream=stream)
    asked = asyncio.ensure_future(engine.submit(request, OpenSeat()))
    await vllm.has_come.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await asyncio.wait_for(vllm.gone.wait(), 5)


async def test_a_slow_first_byte_is_waited_for(vllm: FakeVllm, engine: UpstreamEngine) -> None:
    vllm.may_begin.clear()
    asked = asyncio.ensure_future(document(engine, Operation.CHAT, messages=HELLO))
    await vllm.has_come.wait()
    await engine.check()
    vllm.may_begin.set()
    assert (await asked)["choices"][0]["message"]["content"] == ANSWER


async def test_a_connection_that_breaks_in_a_stream_is_a_server_that_is_down(
    vllm: FakeVllm, engine: UpstreamEngine
) -> None:
    vllm.drops_after = 3
    frames, error = await read_to_the_end(await chat_stream(engine))
    assert isinstance(error, EngineDown)
    assert text_of(frames) == "".join(WORDS[:2])
    assert all(frame.data != "[DONE]" for frame in frames)


async def test_an_engine_that_fails_in_a_stream_is_an_error_and_no_end(vllm: FakeVllm, engine: UpstreamEngine) -> None:
    vllm.fails_after = 3
    frames, error = await read_to_the_end(await chat_stream(engine))
    assert isinstance(error, EngineFault)
    assert (text_of(frames), error.message) == ("".join(WORDS[:2]), "EngineCore encountered an issue.")


async def test_a_dead_engine_fails_its_requests_without_its_words(vllm: FakeVllm, engine: UpstreamEngine) -> None:
    vllm.is_dead = True
    with pytest.raises(EngineFault, match="failed with status 500"):
        await document(engine, Operation.CHAT, messages=HELLO)


async def test_while_its_model_loads_the_server_is_down_and_then_it_is_there(vllm: FakeVllm) -> None:
    """Nothing listens before vLLM has loaded."""
    with socket(AF_INET, SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    engine = UpstreamEngine(
        EngineSpec(MODEL, "upstream", url=f"http://127.0.0.1:{port}/v1", arguments={"upstream_model": NAME})
    )
    with pytest.raises(EngineFault, match="cannot be reached"):
        await engine.start()
    async with serving(FakeUpstream(vllm, models=vllm), port=port):
        reply = await document(engine, Operation.CHAT, messages=HELLO)
        await engine.check()
        await engine.close()
    assert reply["choices"][0]["message"]["content"] == ANSWER
