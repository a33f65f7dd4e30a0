"""A small HTTP/1.1 client that notes when each part of a reply arrived.

While a reply comes in, its bytes are kept as they are, each read with a time stamp, and nothing else is done: the
client shares the processor with the server that it measures. Framing and events are worked out afterwards, and each
event gets the stamp of the read that completed it. One request a connection. Stamps are `time.monotonic()` seconds.
"""

import asyncio
import json
import re
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

_HEAD_END = b"\r\n\r\n"
_EVENT_END = re.compile(rb"\r?\n\r?\n")


class ExchangeFailed(Exception):
    """No whole reply: the connection was refused or cut, or what came is not HTTP."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event: its data, and when its last byte had come."""

    data: bytes
    at: float


@dataclass(frozen=True, slots=True)
class Span:
    """`raw[start:end]` are bytes of the body; the first of them is number `offset` of the body."""

    start: int
    end: int
    offset: int


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply.

    Attributes:
        status: HTTP status.
        body: without transfer coding.
        sent_at: when the request was written.
        ended_at: when the last byte came.
        spans, read_ends, read_stamps: where the body's bytes were, where each read ended and when it came.
    """

    status: int
    body: bytes
    sent_at: float
    ended_at: float
    spans: tuple[Span, ...]
    read_ends: tuple[int, ...]
    read_stamps: tuple[float, ...]

    def events(self) -> Iterator[Event]:
        """The body's events in order; comments (keep-alives) are left out, an unfinished last one too."""
        start = 0
        for boundary in _EVENT_END.finditer(self.body):
            lines = self.body[start : boundary.start()].splitlines()
            start = boundary.end()
            data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
            if data:
                yield Event(b"\n".join(data), self._arrival(boundary.end() - 1))

    def _arrival(self, offset: int) -> float:
        """When byte number `offset` of the body came."""
        span = self.spans[bisect_left(self.spans, offset + 1, key=lambda span: span.offset) - 1]
        raw_end = span.start + offset - span.offset + 1
        return self.read_stamps[bisect_left(self.read_ends, raw_end)]


class _Recorder(asyncio.Protocol):
    """Writes one request and keeps what comes, until the server closes."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.sent_at = 0.0
        self.reads: list[bytes] = []
        self.stamps: list[float] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.sent_at = time.monotonic()
        transport.write(self._request)  # type: ignore[attr-defined]  # a TCP transport; uvloop's shares no base class

    def data_received(self, data: bytes) -> None:
        self.stamps.append(time.monotonic())
        self.reads.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.closed.done():
            return
        if exc is None:
            self.closed.set_result(None)
        else:
            self.closed.set_exception(ExchangeFailed(f"connection lost: {exc}"))


async def exchange(address: Address, target: str, document: object = None, *, timeout_seconds: float = 60) -> Reply:
    """GET `target`, or POST `document` as JSON to it, and wait for the whole reply.

    Raises:
        ExchangeFailed: no connection, a reply that was cut off or is not HTTP, or none within `timeout_seconds`.
    """
    loop = asyncio.get_running_loop()
    request = _request(address, target, document)
    transport = None
    try:
        async with asyncio.timeout(timeout_seconds):
            transport, recorder = await loop.create_connection(lambda: _Recorder(request), address.host, address.port)
            await recorder.closed
    except TimeoutError as error:
        raise ExchangeFailed(f"no whole reply to {target} within {timeout_seconds:g} s") from error
    except OSError as error:
        raise ExchangeFailed(f"no connection: {error}") from error
    finally:
        if transport is not None:
            transport.abort()
    return parse_reply(recorder.sent_at, recorder.reads, recorder.stamps)


def _request(address: Address, target: str, document: object) -> bytes:
    body = b"" if document is None else json.dumps(document).encode()
    lines = [
        f"{'GET' if document is None else 'POST'} {target} HTTP/1.1",
        f"host: {address.host}:{address.port}",
        "connection: close",
    ]
    if document is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode() + _HEAD_END + body


def parse_reply(sent_at: float, reads: Sequence[bytes], stamps: Sequence[float]) -> Reply:
    """What the bytes of a whole connection mean; `stamps` says when each read came.

    Raises:
        ExchangeFailed: it was cut off or is not HTTP.
    """
    raw = b"".join(reads)
    head_end = raw.find(_HEAD_END)
    if head_end < 0:
        raise ExchangeFailed("the server closed the connection without a reply")
    status, headers = _head(raw[:head_end])
    spans = tuple(_spans(raw, head_end + len(_HEAD_END), headers))
    return Reply(
        status=status,
        body=b"".join(raw[span.start : span.end] for span in spans),
        sent_at=sent_at,
        ended_at=stamps[-1],
        spans=spans,
        read_ends=tuple(accumulate(len(read) for read in reads)),
        read_stamps=tuple(stamps),
    )


def _head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *rest = head.split(b"\r\n")
    words = first.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ExchangeFailed("the reply is not HTTP")
    pairs = (line.partition(b":") for line in rest)
    return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _spans(raw: bytes, start: int, headers: dict[bytes, bytes]) -> Iterator[Span]:
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        yield from _chunks(raw, start)
        return
    length = headers.get(b"content-length")
    if length is not None and int(length) != len(raw) - start:
        raise ExchangeFailed(f"the reply was cut off: {len(raw) - start} of {length.decode()} bytes")
    yield Span(start, len(raw), 0)


def _chunks(raw: bytes, place: int) -> Iterator[Span]:
    """The parts of a chunked body (RFC 9112, 7.1); trailers are not looked at."""
    offset = 0
    while True:
        line_end = raw.find(b"\r\n", place)
        start = line_end + 2
        try:
            size = int(raw[place:line_end].partition(b";")[0], 16) if line_end >= 0 else None
        except ValueError as error:
            raise ExchangeFailed("the reply's chunks cannot be read") from error
        if size is None or len(raw) < start + size + 2:
            raise ExchangeFailed("the reply was cut off")
        if size == 0:
            return
        yield Span(start, start + size, offset)
        offset += size
        place = start + size + 2
