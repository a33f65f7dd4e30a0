"""A client that leaves stops the generation, shown by the engine's own counters."""

import asyncio
import json
import re
from urllib.parse import urlsplit

import httpx
import pytest

from tests.fakes.process import ServerProcess

MODEL = "smollm2-135m-instruct"
# The answer would take the engine minutes; a request that goes on after its client left is seen at once.
LONG = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Count to ten thousand."}],
    "max_tokens": 4000,
    "ignore_eos": True,
    "temperature": 0,
}
# Tokens that may come between the last one that the client read and the step that knows of the abort: what lay in
# socket buffers, the step under way, and the metrics page's cache of half a second at up to 60 tokens per second.
SLACK_TOKENS = 60


class Counters:
    """The engine's counters as `/metrics` tells them."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def read(self) -> tuple[int, int]:
        """Requests running, tokens generated so far."""
        page = (await self._client.get("/metrics")).text
        running = re.search(rf'headrace_engine_requests_running{{model="{MODEL}"}} (\S+)', page)
        tokens = re.search(rf'headrace_engine_generation_tokens_total{{model="{MODEL}"}} (\S+)', page)
        assert running is not None
        assert tokens is not None
        return int(float(running[1])), int(float(tokens[1]))

    async def until_running(self, number: int) -> int:
        """Wait until so many requests run; returns the tokens generated then."""
        async with asyncio.timeout(30):
            while True:
                running, tokens = await self.read()
                if running == number:
                    return tokens
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "unary"])
async def test_a_client_that_leaves_stops_its_request(server: ServerProcess, stream: bool) -> None:
    async with httpx.AsyncClient(base_url=server.base_url, trust_env=False) as client:
        counters = Counters(client)
        before = await counters.until_running(0)
        reader, writer = await send(server, {**LONG, "stream": stream})
        at_least = await (read_events(reader, 5) if stream else counters.until_running(1))
        writer.close()
        await writer.wait_closed()
        when_closed = (await counters.read())[1]

        after = await counters.until_running(0)

    assert at_least
    assert after - when_closed <= SLACK_TOKENS
    assert after - before < LONG["max_tokens"] // 2  # type: ignore[operator]


async def test_many_clients_that_leave_while_they_wait_leave_nothing_behind(server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=server.base_url, trust_env=False) as client:
        counters = Counters(client)
        connections = [await send(server, {**LONG, "stream": index % 2 == 0}) for index in range(12)]
        await counters.until_running(12)
        for _, writer in connections:
            writer.close()
        await counters.until_running(0)
        models = (await client.get("/readyz")).json()

    assert models["status"] == "ready"


async def send(server: ServerProcess, body: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A raw request on a connection of its own, so that closing it is exactly a client that leaves."""
    address = urlsplit(server.base_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    await writer.drain()
    return reader, writer


async def read_events(reader: asyncio.StreamReader, number: int) -> int:
    """Read so many events of a stream."""
    for _ in range(number):
        await reader.readuntil(b"data: ")
    return number
