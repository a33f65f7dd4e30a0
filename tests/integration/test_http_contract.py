"""The public HTTP contract over real sockets: what a client sees, and what the engine is spared when it leaves.

Every test ends with no lease held and no stream open: `serving` looks once the server has stopped.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import pytest

from headrace_server.api.middleware import HttpLimits
from headrace_server.api.sse import KEEP_ALIVE
from headrace_server.app import HttpOptions
from headrace_server.errors import Contended, EngineDown, EngineFault, InvalidRequest, RequestError
from headrace_server.tenancy.keys import KeyList
from tests.fakes.engine import DONE, FakeEngine, FakeStream, Hold, frame, unary
from tests.fakes.server import CHAT_BODY, STREAM_BODY, Stage, build_stage, serve_app

pytestmark = pytest.mark.timeout(60)

URL = "/v1/chat/completions"
KEY = "a-key-of-good-length"
HOLD_SECONDS = 0.01


@asynccontextmanager
async def serving(stage: Stage, engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real server; nothing may be held or open once the server has stopped."""
    async with serve_app(stage.app) as base_url, httpx.AsyncClient(base_url=base_url, trust_env=False) as client:
        yield client
    assert stage.num_leases == 0
    assert engine.num_open_streams == 0


def refusal_of(response: httpx.Response) -> str:
    """The code of an error answer, whose form is checked."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["code"])


class TestStreams:
    """What a client of a stream sees."""

    async def test_events_arrive_one_by_one_as_the_engine_makes_them(self) -> None:
        stream = FakeStream()
        engine = FakeEngine([stream])
        async with serving(build_stage(engine), engine) as client:
            opening = asyncio.create_task(client.send(client.build_request("POST", URL, json=STREAM_BODY), stream=True))
            await stream.asked.wait()
            assert not opening.done()
            stream.send(frame("a"))
            response = await opening
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-request-id"]
            pieces = response.aiter_raw()
            assert await anext(pieces) == frame("a")
            for event in (frame("b"), DONE):
                stream.send(event)
                assert await anext(pieces) == event
            stream.end()
            assert [piece async for piece in pieces] == []
            assert engine.num_aborts == 0

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (InvalidRequest("too long"), 400),
            (Contended("later", retry_after_seconds=2), 429),
            (EngineFault("no"), 500),
            (EngineDown("gone"), 503),
            (ZeroDivisionError("secret"), 500),
        ],
    )
    @pytest.mark.parametrize("where", ["submit", "first event"])
    async def test_a_refusal_before_the_first_event_keeps_its_status(
        self, error: Exception, status: int, where: str
    ) -> None:
        stream = FakeStream()
        stream.fail(error)
        engine = FakeEngine([error if where == "submit" else stream])
        async with serving(build_stage(engine), engine) as client:
            response = await client.post(URL, json=STREAM_BODY)
            assert response.status_code == status
            assert refusal_of(response) == (error.code if isinstance(error, RequestError) else "internal_error")
            assert "secret" not in response.text

    async def test_a_failure_in_the_middle_ends_in_an_error_event_and_no_done(self) -> None:
        stream = FakeStream(frame("a"))
        stream.fail(EngineFault("it broke", code="broke"))
        engine = FakeEngine([stream])
        async with serving(build_stage(engine), engine) as client:
            response = await client.post(URL, json=STREAM_BODY)
            assert response.status_code == 200
            first, last = response.content.removesuffix(b"\n\n").split(b"\n\n")
            assert first + b"\n\n" == frame("a")
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "broke"

    async def test_comments_bridge_a_long_wait_and_a_failure_after_them_is_an_error_event(self) -> None:
        stream = FakeStream()
        engine = FakeEngine([stream])
        async with (
            serving(build_stage(engine, hold_seconds=HOLD_SECONDS), engine) as client,
            client.stream("POST", URL, json=STREAM_BODY) as response,
        ):
            assert response.status_code == 200
            pieces = response.aiter_raw()
            for _ in range(3):
                assert (await anext(pieces)).replace(KEEP_ALIVE, b"") == b""
            stream.fail(EngineDown("gone"))
            rest = b"".join([piece async for piece in pieces]).replace(KEEP_ALIVE, b"")
            assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == "engine_down"

    async def test_after_comments_the_events_follow(self) -> None:
        stream = FakeStream()
        engine = FakeEngine([stream])
        async with (
            serving(build_stage(engine, hold_seconds=HOLD_SECONDS), engine) as client,
            client.stream("POST", URL, json=STREAM_BODY) as response,
        ):
            pieces = response.aiter_raw()
            assert (await anext(pieces)).startswith(KEEP_ALIVE)
            for event in (frame("a"), DONE):
                stream.send(event)
            stream.end()
            rest = b"".join([piece async for piece in pieces]).replace(KEEP_ALIVE, b"")
            assert rest == frame("a") + DONE


class TestClientsThatLeave:
    """Work for nobody stops."""

    @pytest.mark.parametrize("hold_seconds", [60.0, HOLD_SECONDS])
    async def test_while_waiting_for_the_first_event(self, hold_seconds: float) -> None:
        stream = FakeStream()
        engine = FakeEngine([stream])
        async with serving(build_stage(engine, hold_seconds=hold_seconds), engine) as client:
            request = asyncio.create_task(client.post(URL, json=STREAM_BODY))
            await stream.asked.wait()
            request.cancel()
            await stream.closed.wait()
            assert engine.num_aborts == 1

    async def test_while_comments_are_sent(self) -> None:
        stream = FakeStream()
        engine = FakeEngine([stream])
        async with serving(build_stage(engine, hold_seconds=HOLD_SECONDS), engine) as client:
            async with client.stream("POST", URL, json=STREAM_BODY) as response:
                assert (await anext(response.aiter_raw())).startswith(KEEP_ALIVE)
            await stream.closed.wait()
            assert engine.num_aborts == 1

    async def test_in_the_middle_of_a_stream_and_its_neighbour_goes_on(self) -> None:
        leaving, staying = FakeStream(frame("a")), FakeStream(frame("a"))
        engine = FakeEngine([leaving, staying])
        async with serving(build_stage(engine), engine) as client:
            async with client.stream("POST", URL, json=STREAM_BODY) as left:
                assert await anext(left.aiter_raw()) == frame("a")
                neighbour = asyncio.create_task(client.post(URL, json=STREAM_BODY))
                await staying.asked.wait()
            await leaving.closed.wait()
            assert leaving.was_aborted
            staying.send(DONE)
            staying.end()
            assert (await neighbour).content == frame("a") + DONE

    @pytest.mark.parametrize("body", [CHAT_BODY, STREAM_BODY], ids=["unary", "stream"])
    async def test_while_the_engine_has_not_answered_at_all(self, body: dict[str, object]) -> None:
        hold = Hold()
        engine = FakeEngine([hold])
        stage = build_stage(engine)
        async with serving(stage, engine) as client:
            request = asyncio.create_task(client.post(URL, json=body))
            await hold.entered.wait()
            assert stage.num_leases == 1
            request.cancel()
            await hold.cancelled.wait()
        assert b'status="499"' in stage.runtime.metrics.exposition()

    async def test_while_sending_the_body(self, caplog: pytest.LogCaptureFixture) -> None:
        engine = FakeEngine()
        stage = build_stage(engine)
        async with serving(stage, engine) as client:
            async with connected(client) as connection:
                connection.send(head("POST", URL, "content-type: application/json", "content-length: 100"), b"{")
                await connection.is_flushed()
            assert (await client.get("/livez")).status_code == 200
        assert engine.requests == []
        assert b'status="499"' in stage.runtime.metrics.exposition()
        assert not [record for record in caplog.records if record.exc_info]

    async def test_after_the_answer_is_no_abort(self) -> None:
        stream = FakeStream(DONE)
        stream.end()
        engine = FakeEngine([stream, unary(text="hi")])
        async with serving(build_stage(engine), engine) as client:
            assert (await client.post(URL, json=STREAM_BODY)).content == DONE
            assert (await client.post(URL, json=CHAT_BODY)).json() == {"text": "hi"}
        assert engine.num_aborts == 0


@dataclass(frozen=True, slots=True)
class Connection:
    """A bare socket, for what no client library would send."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, *pieces: bytes) -> None:
        self.writer.writelines(pieces)

    async def is_flushed(self) -> None:
        await self.writer.drain()

    async def rest(self) -> httpx.Response:
        """The answer, once the server has closed the connection."""
        return parsed(await self.reader.read())

    async def answer(self) -> httpx.Response:
        """The next answer on a connection that stays open."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(parsed(head).headers["content-length"])
        return parsed(head + await self.reader.readexactly(length))


@asynccontextmanager
async def connected(client: httpx.AsyncClient) -> AsyncIterator[Connection]:
    address = urlsplit(str(client.base_url))
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


def parsed(data: bytes) -> httpx.Response:
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


def head(method: str, path: str, *lines: str, host: str = "host: headrace.test") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", *([host] if host else []), *lines, "", ""]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


JSON = "content-type: application/json"
CHUNKED = "transfer-encoding: chunked"
LIMITS = HttpLimits(max_body_bytes=1000)


class TestBounds:
    """What a server refuses before it costs anything; afterwards it still serves."""

    @asynccontextmanager
    async def answering(self, limits: HttpLimits, *pieces: bytes) -> AsyncIterator[httpx.Response]:
        """The answer to these bytes, by a server that must still be well afterwards."""
        engine = FakeEngine([unary(text="hi")])
        async with serving(build_stage(engine, options=HttpOptions(limits=limits)), engine) as client:
            async with connected(client) as connection:
                connection.send(*pieces)
                yield await connection.rest()
            assert engine.requests == []
            assert (await client.post(URL, json=CHAT_BODY)).status_code == 200

    async def test_a_body_that_announces_too_much_is_refused_before_it_is_sent(self) -> None:
        async with self.answering(LIMITS, head("POST", URL, JSON, "content-length: 1001")) as response:
            assert (response.status_code, refusal_of(response)) == (413, "request_too_large")
            assert response.headers["connection"] == "close"

    async def test_a_body_that_grows_too_large_in_chunks_is_refused_before_its_end(self) -> None:
        pieces = [chunk(b" " * 600), chunk(b" " * 600)]
        async with self.answering(LIMITS, head("POST", URL, JSON, CHUNKED), *pieces) as response:
            assert (response.status_code, refusal_of(response)) == (413, "request_too_large")
            assert response.headers["connection"] == "close"

    async def test_a_body_that_does_not_come_is_refused_in_time(self) -> None:
        limits = HttpLimits(body_timeout_seconds=0.05)
        async with self.answering(limits, head("POST", URL, JSON, "content-length: 50"), b"{") as response:
            assert (response.status_code, refusal_of(response)) == (408, "request_timeout")
            assert response.headers["connection"] == "close"

    @pytest.mark.parametrize(
        "lines",
        [[f"x-{number}: 1" for number in range(70)], ["x: " + "y" * 20_000], ["y" * 20_000 + ": x"]],
        ids=["many", "long value", "long name"],
    )
    async def test_too_many_or_too_large_headers_are_refused(self, lines: list[str]) -> None:
        async with self.answering(LIMITS, head("GET", "/v1/models", "connection: close", *lines)) as response:
            assert (response.status_code, refusal_of(response)) == (413, "headers_too_large")

    @pytest.mark.parametrize("host", ["host: a b", "host: a/b", "host: a\r\nhost: a", "host: u@a", "host:"])
    async def test_a_bad_or_doubled_host_is_refused(self, host: str) -> None:
        async with self.answering(LIMITS, head("GET", "/v1/models", "connection: close", host=host)) as response:
            assert (response.status_code, refusal_of(response)) == (400, "bad_host")

    async def test_ten_thousand_levels_of_nesting_are_a_400(self) -> None:
        body = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
        lines = [JSON, f"content-length: {len(body)}", "connection: close"]
        async with self.answering(HttpLimits(), head("POST", URL, *lines), body) as response:
            assert (response.status_code, refusal_of(response)) == (400, "invalid_json")

    async def test_a_key_is_asked_for_before_the_body_is_there(self) -> None:
        engine = FakeEngine()
        stage = build_stage(engine, authenticator=KeyList([KEY]))
        async with serving(stage, engine) as client, connected(client) as connection:
            connection.send(head("POST", URL, JSON, "content-length: 5000"))
            response = await connection.rest()
            assert (response.status_code, refusal_of(response)) == (401, "invalid_api_key")

    async def test_a_connection_lives_on_after_a_refusal_whose_body_was_read(self) -> None:
        engine = FakeEngine([unary(text="hi")])
        async with serving(build_stage(engine), engine) as client, connected(client) as connection:
            for body, status in ((b"{", 400), (json.dumps(CHAT_BODY).encode(), 200)):
                connection.send(head("POST", URL, JSON, f"content-length: {len(body)}"), body)
                assert (await connection.answer()).status_code == status


async def test_every_answer_carries_the_request_id_that_was_sent_if_it_is_sane() -> None:
    engine = FakeEngine(lambda _request: ZeroDivisionError("secret"))
    async with serving(build_stage(engine, authenticator=KeyList([KEY])), engine) as client:
        key = {"authorization": f"Bearer {KEY}"}
        statuses = set()
        for method, path, body, headers in (
            ("GET", "/livez", None, {}),
            ("GET", "/v1/models", None, {}),
            ("GET", "/v1/models", None, key),
            ("GET", "/nowhere", None, {}),
            ("PUT", "/livez", None, {}),
            ("POST", URL, [], key),
            ("POST", URL, CHAT_BODY, key),
        ):
            sane = await client.request(method, path, json=body, headers={**headers, "x-request-id": "mine-1"})
            odd = await client.request(method, path, json=body, headers={**headers, "x-request-id": "<mine>"})
            assert sane.headers["x-request-id"] == "mine-1"
            assert odd.headers["x-request-id"] not in ("", "<mine>")
            assert "secret" not in sane.text
            statuses.add(sane.status_code)
        assert statuses == {200, 400, 401, 404, 405, 500}
