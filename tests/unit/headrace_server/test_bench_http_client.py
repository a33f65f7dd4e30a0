"""headrace_server.bench.http_client, against a server on loopback that sends exactly the bytes it is told to."""

import asyncio
import json

import pytest

from headrace_server.bench.http_client import Connection, ConnectionPool, fetch
from headrace_server.bench.http_reply import ExchangeFailed, Reply
from tests.unit.headrace_server.bench_support import (
    SSE_HEAD,
    HangUp,
    Send,
    chunk,
    sending,
    serving,
    whole,
)

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


async def reply_to(*parts: bytes, hang_up: bool = True) -> Reply:
    async with serving(sending(*parts, hang_up=hang_up)) as (endpoint, _):
        return await fetch(endpoint, "/", timeout_seconds=5)


async def test_a_document_is_posted_as_json() -> None:
    async with serving(sending(whole(b"{}"))) as (endpoint, scripted):
        reply = await fetch(endpoint, "/v1/things", {"name": "ä"}, timeout_seconds=5)
    head, _, body = scripted.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/things HTTP/1.1\r\n")
    assert json.loads(body) == {"name": "ä"}
    assert (reply.status, reply.body) == (200, b"{}")


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
async def test_events_are_found_wherever_chunks_are_cut(newline: bytes) -> None:
    body = newline.join([b"data: one", b"", b": keep-alive", b"", b"event: x", b"data:two", b"data: three", b"", b""])
    for size in (1, 3, 7, len(body)):
        chunks = [chunk(body[start : start + size]) for start in range(0, len(body), size)]
        reply = await reply_to(SSE_HEAD, *chunks, chunk(b""), hang_up=False)
        assert reply.body == body
        assert [event.data for event in reply.events()] == [b"one", b"two\nthree"]


async def test_a_body_that_looks_like_the_last_chunk_does_not_end_the_reply() -> None:
    body = b"data: 0\r\n\r\n"
    reply = await reply_to(SSE_HEAD, chunk(body)[:-2], b"\r\n", chunk(b"data: 1\n\n"), chunk(b""), hang_up=False)
    assert [event.data for event in reply.events()] == [b"0", b"1"]


async def exchange_each(pool: ConnectionPool, count: int) -> None:
    for _ in range(count):
        await pool.exchange(REQUEST, timeout_seconds=5)


@pytest.mark.parametrize("reply", [whole(b"{}"), SSE_HEAD + chunk(b"data: 1\n\n") + chunk(b"")])
async def test_a_connection_serves_one_request_after_another(reply: bytes) -> None:
    async with serving(sending(reply)) as (endpoint, scripted):
        with ConnectionPool(endpoint) as pool:
            await exchange_each(pool, 3)
        assert (len(scripted.requests), scripted.num_connections) == (3, 1)


async def test_a_server_that_will_close_gets_a_new_connection() -> None:
    closing = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    async with serving(sending(closing, hang_up=True)) as (endpoint, scripted):
        with ConnectionPool(endpoint) as pool:
            await exchange_each(pool, 2)
        assert scripted.num_connections == 2


async def test_requests_at_the_same_time_have_a_connection_each() -> None:
    both = asyncio.Barrier(2)

    async def script(send: Send, _: bytes) -> None:
        await both.wait()
        await send(whole(b"{}"))

    async with serving(script) as (endpoint, scripted):
        with ConnectionPool(endpoint) as pool:
            await asyncio.gather(exchange_each(pool, 2), exchange_each(pool, 2))
        assert scripted.num_connections == 2


async def test_a_connection_with_half_a_reply_on_it_is_never_used_again() -> None:
    answers = iter([whole(b"four"), whole(b"four")[:-1], whole(b"four")])

    async def script(send: Send, _: bytes) -> None:
        await send(next(answers))

    async with serving(script) as (endpoint, scripted):
        with ConnectionPool(endpoint) as pool:
            await pool.exchange(REQUEST, timeout_seconds=5)
            with pytest.raises(ExchangeFailed, match="no whole reply within"):
                await pool.exchange(REQUEST, timeout_seconds=0.1)
            reception = await pool.exchange(REQUEST, timeout_seconds=5)
        assert b"".join(reception.reads) == whole(b"four")
        assert scripted.num_connections == 2


async def test_a_connection_that_was_idle_for_long_may_be_about_to_close_and_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headrace_server.bench.http_client._REUSE_SECONDS", -1.0)
    async with serving(sending(whole(b"{}"))) as (endpoint, scripted):
        with ConnectionPool(endpoint) as pool:
            await exchange_each(pool, 2)
        assert scripted.num_connections == 2


class Wire(asyncio.Transport):
    """A transport that answers a request with the given reads, each by itself."""

    def __init__(self, connection: Connection, reads: list[bytes]) -> None:
        super().__init__()
        self._connection = connection
        self._reads = reads

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        for read in self._reads:
            asyncio.get_running_loop().call_soon(self._connection.data_received, read)


@pytest.mark.parametrize("reply", [whole(b"{}"), SSE_HEAD + chunk(b"data: 1\n\n") + chunk(b"")])
async def test_the_end_of_a_reply_is_seen_wherever_the_bytes_are_cut(reply: bytes) -> None:
    for place in range(1, len(reply)):
        connection = Connection()
        connection.connection_made(Wire(connection, [reply[:place], reply[place:]]))
        async with asyncio.timeout(5):
            reception = await connection.exchange(REQUEST)
        assert reception.reads == [reply[:place], reply[place:]]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", "closed the connection without a reply"),
        (b"HTTP/1.1 200 OK\r\nconte", "closed the connection without a reply"),
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfour", "cut off: 4 of 5 bytes"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nfour", "length cannot be read"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nfour", "more than its reply"),
        (SSE_HEAD + chunk(b"data: 1\n\n"), "cut off"),
        (SSE_HEAD + b"9\r\ndata", "cut off"),
        (SSE_HEAD + b"zz\r\ndata\r\n0\r\n\r\n", "chunks cannot be read"),
    ],
)
async def test_a_reply_that_is_not_whole_is_a_failure(sent: bytes, message: str) -> None:
    with pytest.raises(ExchangeFailed, match=message):
        await reply_to(sent)


async def test_a_reply_without_a_length_ends_with_its_connection() -> None:
    assert (await reply_to(b"HTTP/1.0 200 OK\r\n\r\nall of it")).body == b"all of it"


async def test_a_port_where_nobody_listens_is_a_failure() -> None:
    async with serving(sending()) as (endpoint, _):
        pass
    with pytest.raises(ExchangeFailed, match="no connection: Connection refused"):
        await fetch(endpoint, "/", timeout_seconds=5)


async def test_a_connection_that_is_reset_is_a_failure() -> None:
    async def script(send: Send, _: bytes) -> None:
        raise HangUp

    async with serving(script) as (endpoint, _):
        with pytest.raises(ExchangeFailed, match="closed the connection without a reply"):
            await fetch(endpoint, "/", timeout_seconds=5)
