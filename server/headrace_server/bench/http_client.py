"""A small HTTP/1.1 client that notes when each part of a reply arrived.

While a reply comes in, its bytes are kept as they are, each read with a time stamp, and all that is looked at is
whether they end like a last chunk: the client shares the machine with the server that it measures. A read costs it
5 µs, most of them the kernel's and the event loop's. Connections are kept open and reused, as OpenAI's SDKs do. Stamps
are `time.monotonic()` seconds.
"""

import asyncio
import os
import time
from dataclasses import dataclass

from headrace_server.bench.endpoint import Endpoint, http_request
from headrace_server.bench.http_reply import ExchangeFailed, Head, Reply, is_whole, parse_head, parse_reply

_LAST_CHUNK = b"0\r\n\r\n"
# Servers close connections that were idle for 5 s (uvicorn) or more; before that, reusing one is safe.
_REUSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Reception:
    """What came in answer to one request: when that was written, and each read with its stamp."""

    sent_at: float
    reads: list[bytes]
    stamps: list[float]


class Connection(asyncio.Protocol):
    """One connection; one exchange at a time."""

    def __init__(self) -> None:
        self.is_reusable = True
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._reads: list[bytes] = []
        self._stamps: list[float] = []
        self._head: Head | None = None
        self._chunked = False
        self._whole: asyncio.Future[None] | None = None

    async def exchange(self, request: bytes) -> Reception:
        """Write a request and wait for the whole reply.

        Raises:
            ExchangeFailed: the connection was lost before that, or what came is not HTTP.
        """
        if self._transport is None or self._transport.is_closing():
            raise ExchangeFailed("the server closed the connection without a reply")
        self._reads, self._stamps, self._head, self._chunked = [], [], None, False
        self._whole = asyncio.get_running_loop().create_future()
        sent_at = time.monotonic()
        self._transport.write(request)
        await self._whole
        self.idle_since = self._stamps[-1]
        return Reception(sent_at, self._reads, self._stamps)

    @property
    def is_at_rest(self) -> bool:
        """Whether the last reply came whole: nothing of it can be taken for the next one."""
        return self._whole is not None and self._whole.done() and not self._whole.cancelled()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a TCP transport; uvloop's shares no base class

    def data_received(self, data: bytes) -> None:
        self._stamps.append(time.monotonic())
        self._reads.append(data)
        # A last chunk that was cut in two has fewer than its five bytes in the second read.
        if not self._chunked or data.endswith(_LAST_CHUNK) or len(data) < len(_LAST_CHUNK):
            self._look_for_the_end()

    def _look_for_the_end(self) -> None:
        if self._whole is None or self._whole.done():
            return
        raw = b"".join(self._reads)
        try:
            self._head = self._head or parse_head(raw)
            if self._head is None:
                return
            self._chunked = self._head.is_chunked
            if is_whole(raw, self._head):
                self.is_reusable = self._head.keeps_open
                self._whole.set_result(None)
        except ExchangeFailed as error:
            self.is_reusable = False
            self._whole.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_reusable = False
        if self._whole is None or self._whole.done():
            return
        if exc is not None:
            self._whole.set_exception(ExchangeFailed(f"connection lost: {exc}"))
        elif self._reads:
            self._whole.set_result(None)  # parsing says whether the reply is whole
        else:
            self._whole.set_exception(ExchangeFailed("the server closed the connection without a reply"))


class ConnectionPool:
    """Open connections to one server. Use as a context: leaving it closes them all."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._tls = endpoint.tls()
        self._idle: list[Connection] = []

    def __enter__(self) -> "ConnectionPool":
        return self

    def __exit__(self, *_: object) -> None:
        while self._idle:
            self._idle.pop().close()

    async def exchange(self, request: bytes, *, timeout_seconds: float) -> Reception:
        """One request and its reply, on an idle connection or a new one.

        Raises:
            ExchangeFailed: no connection, no whole reply, or none within `timeout_seconds`.
        """
        connection: Connection | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                connection = self._take_idle() or await self._connect()
                reception = await connection.exchange(request)
        except TimeoutError as error:
            raise ExchangeFailed(f"no whole reply within {timeout_seconds:g} s") from error
        except OSError as error:
            raise ExchangeFailed(f"no connection: {_reason(error)}") from error
        finally:
            if connection is not None and not self._put_back(connection):
                connection.close()
        return reception

    def _take_idle(self) -> Connection | None:
        oldest = time.monotonic() - _REUSE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        connect = asyncio.get_running_loop().create_connection
        _, connection = await connect(Connection, self._endpoint.host, self._endpoint.port, ssl=self._tls)
        return connection

    def _put_back(self, connection: Connection) -> bool:
        """Keep a connection whose last reply is whole."""
        if connection.is_reusable and connection.is_at_rest:
            self._idle.append(connection)
            return True
        return False


def _reason(error: OSError) -> str:
    """In the system's words where it was the system; event loops word it each in their own way."""
    return os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else str(error)


async def fetch(
    endpoint: Endpoint, path: str, document: object = None, *, api_key: str | None = None, timeout_seconds: float = 60
) -> Reply:
    """GET `path`, or POST `document` to it, on a connection of its own.

    Raises:
        ExchangeFailed: no whole reply.
    """
    request = http_request(endpoint, path, document, api_key=api_key)
    with ConnectionPool(endpoint) as pool:
        reception = await pool.exchange(request, timeout_seconds=timeout_seconds)
    return parse_reply(reception.reads, reception.stamps)
