"""What the tests of the benchmark share: servers that send exactly what they are told to, and processes to stop."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from headrace_server.bench.endpoint import Endpoint
from headrace_server.bench.process_table import ProcessId, living_processes

Send = Callable[[bytes], Awaitable[None]]
Script = Callable[[Send, bytes], Awaitable[None]]

SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
TURN_SECONDS = 20.0

# A leader and a child in a session of its own; both run until they are killed.
FAMILY = """
import os, time
if os.fork() == 0:
    os.setsid()
    print("ready", flush=True)
time.sleep(600)
"""


class Scripted:
    """Plays a script for each request, which it keeps; connections stay open unless the script ends them."""

    def __init__(self, script: Script) -> None:
        self.requests: list[bytes] = []
        self.num_connections = 0
        self._script = script
        self._handlers: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Endpoint]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        try:
            yield Endpoint(*server.sockets[0].getsockname()[:2])
        finally:
            server.close()
            for handler in self._handlers:
                handler.cancel()
            await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        self.num_connections += 1
        try:
            await self._play(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, HangUp):
            return
        finally:
            self._handlers.discard(handler)
            writer.close()

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        while True:
            self.requests.append(await self._request(reader))
            await self._script(send, self.requests[-1])

    async def _request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
        return head + await reader.readexactly(length)


class HangUp(Exception):
    """Raised by a script: close the connection now."""


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[tuple[Endpoint, Scripted]]:
    scripted = Scripted(script)
    async with scripted.serving() as endpoint:
        yield endpoint, scripted


def sending(*parts: bytes, hang_up: bool = False) -> Script:
    """The same parts for each request."""

    async def script(send: Send, _: bytes) -> None:
        for part in parts:
            await send(part)
        if hang_up:
            raise HangUp

    return script


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(body: bytes, *, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


def event(document: object) -> bytes:
    return b"data: %s\n\n" % json.dumps(document).encode()


def delta(**fields: str) -> bytes:
    return event({"choices": [{"delta": fields}]})


def usage(num_tokens: int) -> bytes:
    return event({"choices": [], "usage": {"completion_tokens": num_tokens}})


def stream_reply(num_tokens: int) -> bytes:
    """A whole streamed answer, in one piece of bytes."""
    events = [*[delta(content="a")] * num_tokens, usage(num_tokens), DONE]
    return SSE_HEAD + b"".join(map(chunk, events)) + chunk(b"")


@contextmanager
def family(folder: Path) -> Iterator[tuple[ProcessId, ProcessId]]:
    """Two real processes, a leader and its child."""
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, cwd=folder, start_new_session=True
    ) as leader:
        try:
            assert leader.stdout is not None
            assert leader.stdout.readline() == b"ready\n"
            (child,) = (entry.pid for entry in living_processes().values() if entry.parent == leader.pid)
            yield ProcessId(leader.pid), child
        finally:
            for pid in (leader.pid, *(e.pid for e in living_processes().values() if e.parent == leader.pid)):
                subprocess.run(["kill", "-KILL", str(pid)], check=False)


def are_stopped(*pids: int) -> list[bool]:
    table = living_processes()
    return [table[ProcessId(pid)].is_stopped for pid in pids]
