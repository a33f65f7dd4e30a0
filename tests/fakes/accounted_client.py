"""A client that accounts for each of its requests to the last byte: how it ended, and whether the server said why.

Over plain sockets, because client libraries hide what this is about: a connection that was never made, one that ended
without a byte of an answer, an answer that broke off. Of a stream the last word counts: `[DONE]` after a
`finish_reason`, or an error event and nothing after it.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from uuid import uuid4

HOST = "127.0.0.1"
PATH = "/v1/chat/completions"


class Ending(Enum):
    """How a request ended for its client."""

    ANSWERED = "a whole answer"
    TOLD = "an error in the envelope, as a status or as the stream's last event"
    REFUSED = "no connection"
    UNREAD = "the connection ended without a byte of an answer"
    CUT = "the answer broke off, or is none"


@dataclass(frozen=True, slots=True)
class Account:
    """What became of one request. `code` is the error's; `detail` says what was wrong with an answer that was CUT;
    `began` and `ended` are on the monotonic clock, in seconds."""

    body: Mapping[str, Any] = field(repr=False)
    request_id: str
    began: float
    ended: float
    ending: Ending
    status: int = 0
    code: str = ""
    detail: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    events: tuple[Any, ...] = field(default=(), repr=False)
    document: Any = field(default=None, repr=False)

    @property
    def has_begun(self) -> bool:
        """Whether something of the answer itself had come."""
        return any("error" not in event for event in self.events if isinstance(event, dict))


class _Broken(Exception):
    """The answer is not what it should be; the message says how."""


class Client:
    """One client: asks one thing after the other, on one connection for as long as the server keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: Mapping[str, Any], *, begun: asyncio.Event | None = None, path: str = PATH) -> Account:
        """Send a request and wait for its end, whatever it is. `begun` is set when the first event has come."""
        exchange = _Exchange(body, path, begun or asyncio.Event())
        try:
            reader, writer = await self._connection()
        except OSError:
            return exchange.account(Ending.REFUSED)
        try:
            await exchange.run(reader, writer)
        except (OSError, asyncio.IncompleteReadError) as error:
            await self.close()
            if exchange.status == 0:
                return exchange.account(Ending.UNREAD)
            return exchange.account(Ending.CUT, detail=f"it broke off: {error!r}")
        except (_Broken, ValueError, KeyError, TypeError) as error:
            await self.close()
            return exchange.account(Ending.CUT, detail=repr(error))
        if exchange.headers.get("connection") == "close":
            await self.close()
        return exchange.judged()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and self._streams[0].at_eof():  # the server has closed it between two requests
            await self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self._port)
        return self._streams

    async def close(self) -> None:
        """Leave."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()
            await asyncio.gather(streams[1].wait_closed(), return_exceptions=True)


async def ask(port: int, body: Mapping[str, Any], *, begun: asyncio.Event | None = None, path: str = PATH) -> Account:
    """One request on a connection of its own."""
    client = Client(port)
    try:
        return await client.ask(body, begun=begun, path=path)
    finally:
        await client.close()


class _Exchange:
    """One request, and as much of its answer as has come."""

    def __init__(self, body: Mapping[str, Any], path: str, begun: asyncio.Event) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._body = body
        self._path = path
        self._begun = begun
        self._events: list[Any] = []
        self._document: Any = None
        self._request_id = uuid4().hex
        self._began = time.monotonic()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Raises OSError, IncompleteReadError, _Broken, ValueError."""
        writer.write(self._request())
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            await self._read_events(reader)
        else:
            length = int(self.headers["content-length"])
            self._document = json.loads(await reader.readexactly(length))

    def _request(self) -> bytes:
        content = json.dumps(self._body).encode()
        head = f"POST {self._path} HTTP/1.1\r\nhost: {HOST}\r\nx-request-id: {self._request_id}\r\n"
        return f"{head}content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content

    async def _read_events(self, reader: asyncio.StreamReader) -> None:
        frame: list[str] = []
        async for line in _lines(reader):
            if line:
                frame.append(line)
                continue
            data = [part.removeprefix("data: ") for part in frame if part.startswith("data: ")]
            self._events += [word if word == "[DONE]" else json.loads(word) for word in data]
            frame = []
            if data:
                self._begun.set()
        if frame:
            raise _Broken("the last event is not whole")

    def judged(self) -> Account:
        """What the answer that has come to its end amounts to."""
        try:
            return self._judged_stream() if self._events or self._document is None else self._judged_document()
        except (_Broken, KeyError, TypeError, IndexError) as error:
            return self.account(Ending.CUT, detail=repr(error))

    def _judged_document(self) -> Account:
        if self.status >= 400:
            return self.account(Ending.TOLD, code=_code(self._document))
        if self.status != 200 or ("choices" in self._document and not self._document["choices"][0]["finish_reason"]):
            raise _Broken(f"no whole answer: {self.status} {self._document}")
        return self.account(Ending.ANSWERED)

    def _judged_stream(self) -> Account:
        if not self._events:
            raise _Broken("a stream without an event")
        *events, last = self._events
        if any("error" in event for event in events):
            raise _Broken("an error event was not the last one")
        if last != "[DONE]":
            return self.account(Ending.TOLD, code=_code(last))
        if not any(choice["finish_reason"] for event in events for choice in event["choices"]):
            raise _Broken("[DONE] without a finish_reason")
        return self.account(Ending.ANSWERED)

    def account(self, ending: Ending, *, code: str = "", detail: str = "") -> Account:
        return Account(
            self._body,
            self._request_id,
            self._began,
            time.monotonic(),
            ending,
            self.status,
            code,
            detail,
            self.headers,
            tuple(self._events),
            self._document,
        )


def _code(document: Any) -> str:
    """Of an error envelope. Raises KeyError, TypeError, _Broken where it is none."""
    error = document["error"]
    if set(error) != {"message", "type", "param", "code"} or not error["message"] or not error["code"]:
        raise _Broken(f"not our envelope: {document}")
    return str(error["code"])


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines of a chunked body. Raises IncompleteReadError where it ends before its last chunk."""
    rest = b""
    while length := int(await reader.readuntil(b"\r\n"), 16):
        rest += (await reader.readexactly(length + 2))[:-2]
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line.decode()
    await reader.readexactly(2)
    if rest:
        raise _Broken("the last line is not whole")
