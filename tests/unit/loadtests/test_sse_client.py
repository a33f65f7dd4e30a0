"""loadtests.sse_client, against a server on loopback that sends exactly the bytes it is told to."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.sse_client import Address, ExchangeFailed, Reply, exchange, parse_reply

Send = Callable[[bytes], Awaitable[None]]
Script = Callable[[Send], Awaitable[None]]

SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Scripted:
    """Keeps the request it got and plays a script; one connection at a time."""

    def __init__(self, script: Script) -> None:
        self.request = b""
        self._script = script

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
        self.request = head + await reader.readexactly(length)

        async def send(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        try:
            await self._script(send)
        finally:
            writer.close()


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[tuple[Address, Scripted]]:
    scripted = Scripted(script)
    server = await asyncio.start_server(scripted.answer, "127.0.0.1", 0)
    async with server:
        yield Address(*server.sockets[0].getsockname()[:2]), scripted


def sending(*parts: bytes) -> Script:
    async def script(send: Send) -> None:
        for part in parts:
            await send(part)

    return script


async def reply_to(*parts: bytes) -> Reply:
    async with serving(sending(*parts)) as (address, _):
        return await exchange(address, "/", timeout_seconds=5)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def test_a_document_is_posted_as_json() -> None:
    async with serving(sending(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")) as (address, scripted):
        reply = await exchange(address, "/v1/things", {"name": "ä"}, timeout_seconds=5)
    head, _, body = scripted.request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/things HTTP/1.1\r\n")
    assert f"host: 127.0.0.1:{address.port}".encode() in head
    assert json.loads(body) == {"name": "ä"}
    assert (reply.status, reply.body) == (200, b"{}")
    assert reply.sent_at <= reply.ended_at


async def test_without_a_document_it_is_a_get() -> None:
    async with serving(sending(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")) as (address, scripted):
        reply = await exchange(address, "/livez", timeout_seconds=5)
    assert scripted.request.startswith(b"GET /livez HTTP/1.1\r\n")
    assert reply.status == 503


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
async def test_events_are_found_wherever_chunks_are_cut(newline: bytes) -> None:
    body = newline.join([b"data: one", b"", b": keep-alive", b"", b"event: x", b"data:two", b"data: three", b"", b""])
    for size in (1, 3, 7, len(body)):
        chunks = [chunk(body[start : start + size]) for start in range(0, len(body), size)]
        reply = await reply_to(SSE_HEAD, *chunks, chunk(b""))
        assert reply.body == body
        assert [event.data for event in reply.events()] == [b"one", b"two\nthree"]


@given(st.data())
def test_an_event_has_the_stamp_of_the_read_that_completed_it(data: st.DataObject) -> None:
    """However the body is cut into chunks and the bytes into reads: stamp n means that read n brought the last byte."""
    events = [b"data: %d\n\n" % number for number in range(4)]
    chunks = [chunk(part) for part in cut(b"".join(events), data)]
    reads = cut(SSE_HEAD + b"".join(chunks) + chunk(b""), data)
    stamps = [float(number) for number in range(len(reads))]

    reply = parse_reply(-1.0, reads, stamps)

    assert [event.data for event in reply.events()] == [b"0", b"1", b"2", b"3"]
    for number, event in enumerate(reply.events(), start=1):
        come = [body_bytes(b"".join(reads[: stamp + 1])) for stamp in range(len(reads))]
        assert event.at == next(n for n, body in enumerate(come) if body.startswith(b"".join(events[:number])))
    assert (reply.sent_at, reply.ended_at) == (-1.0, stamps[-1])


def cut(whole: bytes, data: st.DataObject) -> list[bytes]:
    """Pieces of at least one byte."""
    places = data.draw(st.lists(st.integers(1, len(whole) - 1), unique=True, max_size=12).map(sorted))
    return [whole[start:end] for start, end in pairwise([0, *places, len(whole)])]


def body_bytes(begun: bytes) -> bytes:
    """The body as far as a chunked reply has come, by a slow way of its own: byte after byte."""
    rest = begun.partition(b"\r\n\r\n")[2]
    body = b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body


async def test_an_unfinished_last_event_is_not_an_event() -> None:
    reply = await reply_to(SSE_HEAD, chunk(b"data: 1\n\ndata: 2\n"), chunk(b""))
    assert [event.data for event in reply.events()] == [b"1"]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", "closed the connection without a reply"),
        (b"HTTP/1.1 200 OK\r\nconte", "closed the connection without a reply"),
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfour", "cut off: 4 of 5 bytes"),
        (SSE_HEAD + chunk(b"data: 1\n\n"), "cut off"),
        (SSE_HEAD + b"9\r\ndata", "cut off"),
        (SSE_HEAD + b"zz\r\ndata\r\n", "chunks cannot be read"),
    ],
)
async def test_a_reply_that_is_not_whole_is_a_failure(sent: bytes, message: str) -> None:
    with pytest.raises(ExchangeFailed, match=message):
        await reply_to(sent)


async def test_a_server_that_does_not_answer_in_time_is_a_failure() -> None:
    released = asyncio.Event()

    async def script(send: Send) -> None:
        await released.wait()

    async with serving(script) as (address, _):
        with pytest.raises(ExchangeFailed, match=r"no whole reply to /slow within 0\.05 s"):
            await exchange(address, "/slow", timeout_seconds=0.05)
        released.set()


async def test_a_port_where_nobody_listens_is_a_failure() -> None:
    async with serving(sending()) as (address, _):
        pass
    with pytest.raises(ExchangeFailed, match="no connection"):
        await exchange(address, "/", timeout_seconds=5)
