import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from socket import AF_INET, SOCK_STREAM, socket
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.domain import EventStream, Operation, StreamReply
from headrace_server.engine import upstream_client, upstream_frames
from headrace_server.engine.base import EngineSpec
from headrace_server.engine.registry import build_engine
from headrace_server.engine.upstream_engine import UpstreamEngine
from headrace_server.engine.upstream_frames import FrameBuffer, failure_in
from headrace_server.engine.upstream_options import Address, address_of, options_of
from headrace_server.errors import (
    Contended,
    EngineDown,
    EngineFault,
    InvalidRequest,
    ModelNotFound,
    RequestError,
    RequestTooLarge,
    UnsupportedOperation,
    UsageError,
)
from tests.fakes.engine_requests import MODEL, OpenSeat, document, engine_request, opened
from tests.fakes.upstream_server import Dropped, Exchange, FakeUpstream, Handler, list_models, serving

HELLO = [{"role": "user", "content": "Where does the water come from?"}]
KEY = "sk-very-secret"
CHUNK = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def spec(url: str | None, **arguments: object) -> EngineSpec:
    return EngineSpec(MODEL, "upstream", url=url, arguments=arguments)


@asynccontextmanager
async def engine_on(upstream: FakeUpstream, **arguments: object) -> AsyncIterator[UpstreamEngine]:
    """A started engine in front of a running stand-in."""
    async with serving(upstream) as url:
        engine = UpstreamEngine(spec(url, **arguments))
        try:
            await engine.start()
            yield engine
        finally:
            await engine.close()


async def stream_of(engine: UpstreamEngine, operation: Operation = Operation.CHAT) -> EventStream:
    return (await opened(engine, operation, messages=HELLO)).events


def answering(document_: object, *, status: int = 200, **headers: str) -> Handler:
    async def answer(exchange: Exchange) -> None:
        await exchange.answer(document_, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


def streaming(*chunks: bytes) -> Handler:
    async def stream(exchange: Exchange) -> None:
        await exchange.open()
        for chunk in chunks:
            await exchange.send(chunk)
        await exchange.end()

    return stream


async def read_until_failure(events: EventStream) -> tuple[bytes, RequestError | None]:
    """All bytes of a stream, and the error that ended it."""
    received = b""
    try:
        async for item in events:
            assert item.endswith((b"\n\n", b"\r\n\r\n"))
            received += item
    except RequestError as error:
        return received, error
    return received, None


def free_port() -> int:
    with socket(AF_INET, SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class TestAddress:
    @pytest.mark.parametrize(
        ("url", "address"),
        [
            ("http://host:8000", Address("http://host:8000")),
            ("https://host", Address("https://host")),
            ("http://host:8000/", Address("http://host:8000")),
            ("http://host:8000/v1", Address("http://host:8000")),
            ("http://host:8000/v1/", Address("http://host:8000")),
            ("http://[::1]:8000/engines/v1", Address("http://[::1]:8000/engines")),
            ("unix:///run/up.sock", Address("http://localhost", "/run/up.sock")),
            ("unix:///run/up.sock:/engines/v1", Address("http://localhost/engines", "/run/up.sock")),
        ],
    )
    def test_every_documented_form_is_understood(self, url: str, address: Address) -> None:
        assert address_of(spec(url)) == address

    @pytest.mark.parametrize(
        "url", [None, "", "host:8000", "ftp://host", "http://", "unix://run/up.sock", "http://me:pw@host", "http://h:x"]
    )
    def test_anything_else_is_a_usage_error(self, url: str | None) -> None:
        with pytest.raises(UsageError):
            UpstreamEngine(spec(url))


class TestOptions:
    @pytest.mark.parametrize(
        "arguments", [{"connect_timeout_seconds": 0}, {"upstream_model": 7}, {"api_key": "two words"}, {"api_key": ""}]
    )
    def test_bad_arguments_are_a_usage_error(self, arguments: dict[str, object]) -> None:
        with pytest.raises(UsageError):
            options_of(spec("http://host", **arguments))

    def test_a_bad_key_is_not_quoted(self) -> None:
        with pytest.raises(UsageError) as refusal:
            options_of(spec("http://host", api_key=f"{KEY}\n"))
        assert KEY not in str(refusal.value)

    def test_a_key_is_not_shown(self) -> None:
        assert KEY not in repr(options_of(spec("http://host", api_key=KEY)))

    def test_the_registry_builds_it(self) -> None:
        assert isinstance(build_engine(spec("http://host")), UpstreamEngine)


class TestStart:
    async def test_a_start_learns_the_context_length_of_our_model(self) -> None:
        listed = {"data": [{"id": "other", "max_model_len": 1}, {"id": "far-mill", "max_model_len": 99}]}
        async with serving(FakeUpstream(models=answering(listed))) as url:
            engine = UpstreamEngine(spec(url, upstream_model="far-mill"))
            info = await engine.start()
            await engine.close()
        assert info.max_model_len == 99
        assert info.operations == frozenset(Operation)

    @pytest.mark.parametrize("models", [answering({}, status=404), answering({"data": []})])
    async def test_a_server_that_lists_no_models_is_accepted(self, models: Handler) -> None:
        async with serving(FakeUpstream(models=models)) as url:
            engine = UpstreamEngine(spec(url))
            assert (await engine.start()).max_model_len is None
            await engine.close()

    @pytest.mark.parametrize(
        "models",
        [
            answering({}, status=401),
            answering({}, status=400),
            answering({}, status=500),
            answering({}, status=503),
            answering(b"<html>"),
        ],
    )
    async def test_a_server_that_fails_when_asked_for_models_fails_the_start(self, models: Handler) -> None:
        async with serving(FakeUpstream(models=models)) as url:
            engine = UpstreamEngine(spec(url, api_key=KEY))
            with pytest.raises(EngineFault) as failure:
                await engine.start()
            await engine.close()
        assert KEY not in failure.value.message
        assert "\n" not in failure.value.message

    async def test_an_unreachable_server_fails_the_start_without_naming_its_address(self) -> None:
        engine = UpstreamEngine(spec(f"http://127.0.0.1:{free_port()}", api_key=KEY))
        with pytest.raises(EngineFault) as failure:
            await engine.start()
        await engine.close()
        await engine.close()
        assert failure.value.message == "the upstream server cannot be reached"

    async def test_a_unix_socket_works_with_a_prefix(self, tmp_path: Path) -> None:
        upstream = FakeUpstream(answering({"choices": []}))
        async with serving(upstream, socket_path=tmp_path / "up.sock") as url:
            engine = UpstreamEngine(spec(f"{url}:/engines/v1"))
            await engine.start()
            await document(engine, Operation.TOKENIZE, prompt="x")
            await document(engine, Operation.CHAT, messages=HELLO)
            await engine.close()
        paths = [exchange.path for exchange in upstream.exchanges]
        assert paths == ["/engines/v1/models", "/engines/tokenize", "/engines/v1/chat/completions"]

    async def test_an_engine_that_has_not_started_or_is_closed_is_down(self) -> None:
        engine = UpstreamEngine(spec("http://host"))
        with pytest.raises(EngineDown):
            await document(engine, Operation.CHAT, messages=HELLO)
        with pytest.raises(EngineDown):
            await engine.check()


class TestUnary:
    @pytest.mark.parametrize("operation", list(Operation))
    async def test_every_operation_goes_to_its_path_with_its_payload(self, operation: Operation) -> None:
        upstream = FakeUpstream(answering({"ok": True}))
        async with engine_on(upstream, api_key=KEY) as engine:
            assert await document(engine, operation, messages=HELLO, seed=3) == {"ok": True}
        exchange = upstream.exchanges[-1]
        assert (exchange.method, exchange.path) == ("POST", operation.value)
        assert exchange.json == {"model": MODEL, "messages": HELLO, "seed": 3}
        assert exchange.headers["authorization"] == f"Bearer {KEY}"
        assert exchange.headers["x-request-id"] == "r1"
        assert exchange.headers["content-type"] == "application/json"
        assert exchange.headers["accept-encoding"] == "identity"

    async def test_the_models_name_is_translated_there_and_back(self) -> None:
        upstream = FakeUpstream(answering({"id": "1", "model": "far-mill", "x": [1.5]}))
        async with engine_on(upstream, upstream_model="far-mill") as engine:
            reply = await document(engine, Operation.CHAT, messages=HELLO)
        assert upstream.exchanges[-1].json["model"] == "far-mill"
        assert reply == {"id": "1", "model": MODEL, "x": [1.5]}

    async def test_usage_is_counted_under_openais_and_anthropics_names(self) -> None:
        replies: list[object] = [
            {"usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}},
            {"usage": {"input_tokens": 10, "output_tokens": 20}},
            {"usage": {"prompt_tokens": 100, "total_tokens": 100}},
            {"usage": None},
            {"usage": "much"},
        ]

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(replies.pop(0))

        async with engine_on(FakeUpstream(answer)) as engine:
            while replies:
                await document(engine, Operation.CHAT, messages=HELLO)
            stats = engine.stats()
        assert (stats.prompt_tokens_total, stats.generation_tokens_total) == (113, 25)
        assert stats.num_requests_running == 0

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"a": nope}', b'{"a": "\xff"}'])
    async def test_a_reply_that_is_no_json_object_is_a_fault(self, body: bytes) -> None:
        async with engine_on(FakeUpstream(answering(body))) as engine:
            with pytest.raises(EngineFault):
                await document(engine, Operation.CHAT, messages=HELLO)
            assert engine.stats().num_requests_running == 0

    async def test_a_reply_that_is_too_large_is_a_fault(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(upstream_client, "MAX_REPLY_BYTES", 1000)
        async with engine_on(FakeUpstream(answering({"a": "x" * 2000}))) as engine:
            with pytest.raises(EngineFault):
                await document(engine, Operation.CHAT, messages=HELLO)

    async def test_a_compressed_reply_is_a_fault(self) -> None:
        async with engine_on(FakeUpstream(answering({}, content_encoding="gzip"))) as engine:
            with pytest.raises(EngineFault):
                await document(engine, Operation.CHAT, messages=HELLO)

    async def test_a_reply_that_breaks_off_is_engine_down(self) -> None:
        async def break_off(exchange: Exchange) -> None:
            await exchange.open({"content-type": "application/json"})
            await exchange.send(b'{"id": ')
            raise Dropped

        async with engine_on(FakeUpstream(break_off)) as engine:
            with pytest.raises(EngineDown):
                await document(engine, Operation.CHAT, messages=HELLO)

    async def test_cancelling_a_request_closes_the_upstream_connection(self) -> None:
        arrived, gone = asyncio.Event(), asyncio.Event()

        async def wait(exchange: Exchange) -> None:
            arrived.set()
            await exchange.until_gone()
            gone.set()

        async with engine_on(FakeUpstream(wait)) as engine:
            request = asyncio.ensure_future(document(engine, Operation.CHAT, messages=HELLO))
            await arrived.wait()
            assert engine.stats().num_requests_running == 1
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await asyncio.wait_for(gone.wait(), 5)
            assert engine.stats().num_requests_running == 0


class TestStatuses:
    @pytest.mark.parametrize(
        ("status", "body", "error", "message"),
        [
            (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}, InvalidRequest, "too long"),
            (400, {"object": "error", "message": "old form"}, InvalidRequest, "old form"),
            (400, {"type": "error", "error": {"type": "x", "message": "anthropic"}}, InvalidRequest, "anthropic"),
            (422, {"detail": [{"loc": ["body", "n"], "msg": "too many"}]}, InvalidRequest, "body.n: too many"),
            (422, {"detail": "plain"}, InvalidRequest, "plain"),
            (400, b"<html>secret stack trace", InvalidRequest, "the upstream server refused the request"),
            (400, {"error": {"message": "x" * 9999}}, InvalidRequest, "x" * 500),
            (401, {"error": {"message": f"bad key {KEY}"}}, EngineFault, "the upstream server refused our credentials"),
            (403, {}, EngineFault, "the upstream server refused our credentials"),
            (404, {"error": {"message": "The model `x` does not exist."}}, ModelNotFound, None),
            (404, {"detail": "Not Found"}, UnsupportedOperation, None),
            (405, {}, UnsupportedOperation, None),
            (413, {}, RequestTooLarge, None),
            (429, {}, Contended, None),
            (503, {"error": {"message": "loading"}}, EngineDown, "loading"),
            (500, {"error": {"message": "/home/x.py"}}, EngineFault, "the upstream server failed with status 500"),
            (502, b"", EngineFault, None),
            (302, b"", EngineFault, None),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_refusal_becomes_the_error_that_says_the_same(
        self,
        status: int,
        body: object,
        error: type[RequestError],
        message: str | None,
        stream: bool,
    ) -> None:
        async with engine_on(FakeUpstream(answering(body, status=status)), api_key=KEY) as engine:
            with pytest.raises(RequestError) as raised:
                await engine.submit(engine_request(Operation.CHAT, {"messages": HELLO}, stream=stream), OpenSeat())
            assert engine.stats().num_requests_running == 0
        assert type(raised.value) is error
        assert KEY not in raised.value.message
        if message is not None:
            assert raised.value.message == message

    async def test_code_and_param_of_a_refusal_are_kept_where_they_are_text(self) -> None:
        body = {"error": {"message": "m", "code": 400, "param": "n"}}
        async with engine_on(FakeUpstream(answering(body, status=400))) as engine:
            with pytest.raises(InvalidRequest) as raised:
                await document(engine, Operation.CHAT, messages=HELLO)
        assert (raised.value.code, raised.value.param) == ("invalid_request", "n")

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"retry_after": "7"}, 7.0),
            ({"retry_after": "7", "retry_after_ms": "1500"}, 1.5),
            ({"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
            ({"retry_after": "nan"}, None),
            ({"retry_after": "-1"}, None),
            ({}, None),
        ],
    )
    @pytest.mark.parametrize("status", [429, 503])
    async def test_the_time_to_wait_is_passed_on(
        self, status: int, headers: dict[str, str], seconds: float | None
    ) -> None:
        async with engine_on(FakeUpstream(answering({}, status=status, **headers))) as engine:
            with pytest.raises(RequestError) as raised:
                await document(engine, Operation.CHAT, messages=HELLO)
        assert raised.value.retry_after_seconds == seconds


class TestStreams:
    async def test_frames_are_passed_on_as_they_come(self) -> None:
        go_on = asyncio.Event()

        async def stream(exchange: Exchange) -> None:
            await exchange.open()
            await exchange.send(CHUNK)
            await go_on.wait()
            await exchange.send(CHUNK)
            await exchange.end(DONE)

        async with engine_on(FakeUpstream(stream)) as engine:
            events = await stream_of(engine)
            assert await anext(events) == CHUNK
            assert engine.stats().num_requests_running == 1
            go_on.set()
            assert await read_until_failure(events) == (CHUNK + DONE, None)
            assert engine.stats().num_requests_running == 0

    @pytest.mark.parametrize("is_wanted", [False, True])
    async def test_what_a_stream_used_is_counted_and_passed_on_to_who_asked(self, is_wanted: bool) -> None:
        told = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}\n\n'
        upstream, seat = FakeUpstream(streaming(CHUNK, told, DONE)), OpenSeat()
        options = {"stream_options": {"include_usage": True}} if is_wanted else {}
        async with engine_on(upstream) as engine:
            request = engine_request(Operation.CHAT, {"messages": HELLO, **options}, stream=True)
            reply = await engine.submit(request, seat)
            assert isinstance(reply, StreamReply)
            received, error = await read_until_failure(reply.events)
            stats = engine.stats()
        assert (received, error) == (CHUNK + (told if is_wanted else b"") + DONE, None)
        assert upstream.exchanges[-1].json["stream_options"] == {"include_usage": True}
        assert (seat.prompts, seat.num_generated) == ([(9, 0)], 4)
        assert (stats.prompt_tokens_total, stats.generation_tokens_total) == (9, 4)

    async def test_the_connection_of_a_finished_stream_is_used_again(self) -> None:
        async with engine_on(FakeUpstream(streaming(CHUNK, DONE))) as engine:
            for _ in range(3):
                assert await read_until_failure(await stream_of(engine)) == (CHUNK + DONE, None)
            assert engine._client is not None
            assert len(engine._client._transport._pool.connections) == 1  # type: ignore[attr-defined]

    @pytest.mark.parametrize("operation", [Operation.CHAT, Operation.COMPLETION])
    @pytest.mark.parametrize("ending", [b"", b'data: {"choices":[{"text":"\\ndata: [DONE]"}]}\n\n', b'data: {"cut'])
    async def test_a_stream_without_done_ends_in_engine_down(self, operation: Operation, ending: bytes) -> None:
        async with engine_on(FakeUpstream(streaming(CHUNK, ending))) as engine:
            received, error = await read_until_failure(await stream_of(engine, operation))
            assert engine.stats().num_requests_running == 0
        assert isinstance(error, EngineDown)
        assert received.startswith(CHUNK)
        assert not received.endswith(DONE)

    async def test_a_connection_that_breaks_ends_in_engine_down(self) -> None:
        async def break_off(exchange: Exchange) -> None:
            await exchange.open()
            await exchange.send(CHUNK)
            raise Dropped

        async with engine_on(FakeUpstream(break_off)) as engine:
            received, error = await read_until_failure(await stream_of(engine))
        assert received == CHUNK
        assert isinstance(error, EngineDown)

    @pytest.mark.parametrize("ending", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\r\n\r\n"])
    async def test_a_done_is_recognised_however_it_ends(self, ending: bytes) -> None:
        async with engine_on(FakeUpstream(streaming(CHUNK, ending))) as engine:
            _, error = await read_until_failure(await stream_of(engine))
        assert error is None

    @pytest.mark.parametrize(
        ("operation", "ending"),
        [
            (Operation.RESPONSE, b'event: response.completed\ndata: {"type":"response.completed"}\n\n'),
            (Operation.MESSAGE, b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        ],
    )
    async def test_other_apis_end_in_their_own_way(self, operation: Operation, ending: bytes) -> None:
        started = b'event: response.created\ndata: {"response":{"error":null}}\n\n'
        async with engine_on(FakeUpstream(streaming(started, ending))) as engine:
            assert await read_until_failure(await stream_of(engine, operation)) == (started + ending, None)
        async with engine_on(FakeUpstream(streaming(started))) as engine:
            _, error = await read_until_failure(await stream_of(engine, operation))
        assert isinstance(error, EngineDown)

    @pytest.mark.parametrize(
        ("frame", "message"),
        [
            (b'data: {"error": {"message": "out of memory", "code": 500}}\n\n', "out of memory"),
            (b'data: {"error": "out of memory"}\r\n\r\n', "out of memory"),
            (b'data: {"error": {"message": "' + b"x" * 9999 + b'"}}\n\n', "x" * 500),
            (b'event: error\ndata: {"type":"error","error":{"message":"overloaded"}}\n\n', "overloaded"),
            (b'event: error\ndata: {"type":"error","message":"responses"}\n\n', "responses"),
        ],
    )
    async def test_an_error_frame_is_raised_after_what_came_before_it(self, frame: bytes, message: str) -> None:
        async with engine_on(FakeUpstream(streaming(CHUNK + frame + DONE))) as engine:
            received, error = await read_until_failure(await stream_of(engine))
        assert received == CHUNK
        assert isinstance(error, EngineFault)
        assert error.message == message

    async def test_an_error_in_an_answers_text_is_no_error_frame(self) -> None:
        chunk = b'data: {"choices":[{"delta":{"content":"\\"error\\"","x":"error"}}],"error":null}\n\n'
        async with engine_on(FakeUpstream(streaming(chunk, DONE))) as engine:
            assert await read_until_failure(await stream_of(engine)) == (chunk + DONE, None)

    async def test_keep_alive_comments_are_not_the_first_token(self) -> None:
        async with engine_on(FakeUpstream(streaming(b": keep-alive\n\n", CHUNK, DONE))) as engine:
            assert await anext(await stream_of(engine)) == CHUNK

    async def test_an_answer_that_is_no_stream_is_a_fault(self) -> None:
        async with engine_on(FakeUpstream(answering({"choices": []}))) as engine:
            with pytest.raises(EngineFault):
                await stream_of(engine)
            assert engine.stats().num_requests_running == 0

    async def test_a_stream_that_does_not_end_after_done_is_ended(self) -> None:
        gone = asyncio.Event()

        async def hang(exchange: Exchange) -> None:
            await exchange.open()
            await exchange.send(CHUNK + DONE)
            await exchange.until_gone()
            gone.set()

        async with engine_on(FakeUpstream(hang)) as engine:
            assert await read_until_failure(await stream_of(engine)) == (CHUNK + DONE, None)
            await asyncio.wait_for(gone.wait(), 5)


class Endless:
    """A handler that sends one frame and then waits for its client to go."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.open()
        await exchange.send(CHUNK)
        await exchange.until_gone()
        self.gone.set()


class TestClosingStreams:
    @pytest.mark.parametrize("num_read", [0, 1])
    async def test_closing_a_stream_disconnects_upstream(self, num_read: int) -> None:
        upstream = Endless()
        async with engine_on(FakeUpstream(upstream)) as engine:
            events = await stream_of(engine)
            for _ in range(num_read):
                await anext(events)
            await events.aclose()
            await events.aclose()
            assert engine.stats().num_requests_running == 0
            await asyncio.wait_for(upstream.gone.wait(), 5)
            with pytest.raises(StopAsyncIteration):
                await anext(events)

    async def test_cancelling_a_reader_disconnects_upstream(self) -> None:
        upstream = Endless()
        async with engine_on(FakeUpstream(upstream)) as engine:
            events = await stream_of(engine)
            await anext(events)
            reader = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            await asyncio.wait_for(upstream.gone.wait(), 5)
            assert engine.stats().num_requests_running == 0

    async def test_closing_a_stream_that_another_task_reads_ends_both(self) -> None:
        upstream = Endless()
        async with engine_on(FakeUpstream(upstream)) as engine:
            events = await stream_of(engine)
            await anext(events)
            reader = asyncio.ensure_future(anext(events, b"over"))
            await asyncio.sleep(0)
            await events.aclose()
            assert await asyncio.wait_for(reader, 5) == b"over"
            await asyncio.wait_for(upstream.gone.wait(), 5)
            assert engine.stats().num_requests_running == 0

    async def test_closing_the_engine_ends_its_streams(self) -> None:
        async with engine_on(FakeUpstream(Endless())) as engine:
            events = await stream_of(engine)
            await anext(events)
            reader = asyncio.ensure_future(read_until_failure(events))
            await asyncio.sleep(0)
            await engine.close()
            _, error = await asyncio.wait_for(reader, 5)
        assert isinstance(error, EngineDown)
        assert engine.stats().num_requests_running == 0


class TestCheck:
    async def test_a_server_that_went_away_is_down_until_it_is_back(self) -> None:
        port, now = free_port(), [100.0]
        upstream = FakeUpstream(answering({"choices": []}))
        engine = UpstreamEngine(spec(f"http://127.0.0.1:{port}"), clock=lambda: now[0])
        async with serving(upstream, port=port):
            await engine.start()
            await engine.check()
        with pytest.raises(EngineDown):
            await document(engine, Operation.CHAT, messages=HELLO)
        with pytest.raises(EngineDown):
            await engine.check()
        async with serving(upstream, port=port):
            upstream.exchanges.clear()
            with pytest.raises(EngineDown):
                await engine.check()
            assert upstream.exchanges == [], "probed again within a second"
            now[0] += 1.0
            await engine.check()
            assert [exchange.path for exchange in upstream.exchanges] == ["/v1/models"]
            await engine.check()
            assert len(upstream.exchanges) == 1, "probed although it can be reached"
            await engine.close()

    async def test_a_request_that_succeeds_ends_the_doubt_without_a_probe(self) -> None:
        port = free_port()
        upstream = FakeUpstream(answering({"choices": []}))
        engine = UpstreamEngine(spec(f"http://127.0.0.1:{port}"), clock=lambda: 0.0)
        with pytest.raises(EngineFault):
            await engine.start()
        async with serving(upstream, port=port):
            await document(engine, Operation.CHAT, messages=HELLO)
            await engine.check()
            await engine.close()
        assert [exchange.path for exchange in upstream.exchanges] == ["/v1/chat/completions"]

    async def test_refusals_do_not_make_a_server_unreachable(self) -> None:
        async with engine_on(FakeUpstream(answering({}, status=500))) as engine:
            with pytest.raises(EngineFault):
                await document(engine, Operation.CHAT, messages=HELLO)
            await engine.check()


class TestFrames:
    @given(
        frames=st.lists(st.tuples(st.binary(max_size=20), st.sampled_from([b"\n\n", b"\r\n\r\n"]))),
        cuts=st.lists(st.integers(0, 200)),
    )
    def test_any_cutting_gives_the_same_bytes_in_whole_frames(
        self, frames: list[tuple[bytes, bytes]], cuts: list[int]
    ) -> None:
        whole = b"".join(b"data: " + text.replace(b"\n", b"").replace(b"\r", b"") + end for text, end in frames)
        edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
        buffer = FrameBuffer()
        blocks = [buffer.feed(whole[i:j]) for i, j in zip(edges, edges[1:], strict=False)]
        assert b"".join(blocks) == whole
        assert all(block.endswith((b"\n\n", b"\r\n\r\n")) for block in blocks if block)

    def test_a_frame_without_end_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(upstream_frames, "MAX_FRAME_BYTES", 100)
        buffer = FrameBuffer()
        buffer.feed(b"x" * 100)
        with pytest.raises(EngineFault):
            buffer.feed(b"x")

    @given(st.binary())
    def test_no_bytes_break_the_search_for_errors(self, block: bytes) -> None:
        failure_in(b'data: {"error": ' + block + b"}\n\n")


async def test_a_stream_reply_is_what_it_says() -> None:
    async with engine_on(FakeUpstream(streaming(CHUNK, DONE))) as engine:
        reply = await engine.submit(engine_request(Operation.CHAT, {"messages": HELLO}, stream=True), OpenSeat())
        assert isinstance(reply, StreamReply)
        received: Any = [item async for item in reply.events]
        assert msgspec.json.decode(received[0].removeprefix(b"data: "))["choices"]


async def test_no_log_line_holds_the_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    async with engine_on(FakeUpstream(answering({}, status=401), models=list_models), api_key=KEY) as engine:
        with pytest.raises(EngineFault):
            await document(engine, Operation.CHAT, messages=HELLO)
    assert all(KEY not in f"{record.__dict__}" for record in caplog.records)
