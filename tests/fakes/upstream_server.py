"""A stand-in for an upstream server: a handler written by the test, behind a real uvicorn in the test's own loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import uvicorn
from starlette.types import Receive, Scope, Send

from tests.fakes.uvicorn_server import EventServer

_JSON = {"content-type": "application/json"}
_EVENTS = {"content-type": "text/event-stream; charset=utf-8"}


@dataclass(slots=True)
class Exchange:
    """One request as the upstream sees it, and the means to answer it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    _receive: Receive = field(repr=False)
    _send: Send = field(repr=False)

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    async def answer(self, document: object, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """A whole answer; bytes go out as they are."""
        await self.open({**_JSON, **(headers or {})}, status=status)
        await self.end(document if isinstance(document, bytes) else msgspec.json.encode(document))

    async def open(self, headers: dict[str, str] | None = None, *, status: int = 200) -> None:
        """The headers of an answer, of a stream if none are given."""
        raw = [(name.encode(), value.encode()) for name, value in (headers or _EVENTS).items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def until_gone(self) -> None:
        """Wait until the client has closed its connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class Dropped(Exception):
    """Raised by a handler to break its connection."""


Handler: TypeAlias = Callable[[Exchange], Awaitable[None]]


async def list_models(exchange: Exchange) -> None:
    """A handler for servers that are asked for nothing else."""
    await exchange.answer({"object": "list", "data": [{"id": "mill", "max_model_len": 4096}]})


class FakeUpstream:
    """Hands `GET /v1/models` to `models` and all other requests to `handler`; keeps what it has seen."""

    def __init__(self, handler: Handler = list_models, *, models: Handler = list_models) -> None:
        self.exchanges: list[Exchange] = []
        self._handler = handler
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        body = await _body(receive)
        exchange = Exchange(scope["method"], scope["path"], headers, body, receive, send)
        self.exchanges.append(exchange)
        handler = self._models if exchange.path.endswith("/v1/models") else self._handler
        await handler(exchange)


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


@asynccontextmanager
async def serving(upstream: FakeUpstream, *, socket_path: Path | None = None, port: int = 0) -> AsyncIterator[str]:
    """Run it on a free port, on `port` or on a Unix socket; yields the address as an engine's spec has it."""
    config = uvicorn.Config(
        upstream,
        host="127.0.0.1",
        port=port,
        uds=str(socket_path) if socket_path else None,
        lifespan="off",
        log_config=None,
        ws="none",
    )
    server = EventServer(config)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve())
        await server.has_started.wait()
        try:
            yield f"unix://{socket_path}" if socket_path else _url(server)
        finally:
            server.may_stop.set()


def _url(server: uvicorn.Server) -> str:
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    return f"http://{host}:{port}"
