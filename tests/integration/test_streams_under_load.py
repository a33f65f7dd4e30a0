"""Many streams at once over real sockets: each gets exactly its tokens, and those that leave or stall cost nobody else.

Every test ends with no lease, no ticket and no place in the engine held.
"""

import asyncio
import json
import random
import re
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from headrace_server.domain import Operation
from headrace_server.engine.base import Engine, EngineSpec
from headrace_server.engine.synthetic_engine import SyntheticEngine
from headrace_server.generation import Delta, Generation
from headrace_server.serving.admission import OpenAdmission
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_requests import document, frames_of
from tests.fakes.generation import generation, said
from tests.fakes.process import running_server
from tests.fakes.server import MODEL, Stage, build_stage, serve_app

pytestmark = pytest.mark.timeout(120)

URL = "/v1/chat/completions"
NUM_STREAMS = 200
NUM_TOKENS = 24
NUM_LEAVING = 50
WAIT_SECONDS = 30.0
RUNNING = re.compile(r"^vllm:num_requests_(?:running|waiting) (\d+)", re.MULTILINE)


def stream_body(question: str, *, max_tokens: int = NUM_TOKENS) -> dict[str, object]:
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "stream": True}


def raw_request(address: str, body: dict[str, object]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {URL} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\nconnection: close\r\n\r\n".encode() + content


@dataclass(frozen=True, slots=True)
class House:
    """A served stage, and everything that a request may hold in it."""

    base_url: str
    stage: Stage
    admission: OpenAdmission
    engine: Engine

    @property
    def held(self) -> tuple[int, int, int]:
        """Leases, tickets, and requests in the engine."""
        stats = self.engine.stats()
        in_engine = stats.num_requests_running + stats.num_requests_waiting
        return self.stage.num_leases, self.admission.num_tickets, in_engine

    async def is_empty(self) -> None:
        """Return once nothing is held."""
        async with asyncio.timeout(WAIT_SECONDS), many_connections(self.base_url) as client:
            while self.held != (0, 0, 0):
                await client.get("/livez")


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[House]:
    """A server in this loop. What is held is looked at before it stops, which would end everything."""
    admission = OpenAdmission()
    stage = build_stage(engine, admission=admission)
    async with serve_app(stage.app) as base_url:
        house = House(base_url, stage, admission, engine)
        yield house
        await house.is_empty()


def synthetic(**arguments: object) -> SyntheticEngine:
    return SyntheticEngine(EngineSpec(MODEL, "synthetic", arguments=arguments))


@asynccontextmanager
async def many_connections(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=WAIT_SECONDS, trust_env=False) as client:
        yield client


def texts_of(content: bytes) -> list[str]:
    """The text of every chunk that has some; the stream must have ended well."""
    *chunks, last = [frame.data for frame in frames_of([content])]
    assert last == "[DONE]"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    return [text for text in texts if text]


async def expected_texts(questions: Sequence[str]) -> list[str]:
    """What the synthetic engine says to each question, straight from it."""
    engine = synthetic()
    await engine.start()
    found = []
    for question in questions:
        body = stream_body(question)
        del body["stream"], body["model"]
        answer = await document(engine, Operation.CHAT, **body)
        found.append(answer["choices"][0]["message"]["content"])
    return found


async def test_two_hundred_streams_at_once_each_get_exactly_their_tokens() -> None:
    questions = [f"question {number}" for number in range(NUM_STREAMS)]
    expected = await expected_texts(questions)
    assert len(set(expected)) == NUM_STREAMS  # else streams could be mixed up unseen
    engine = synthetic(itl_ms=1, max_num_seqs=NUM_STREAMS // 2)
    async with serving(engine) as house, many_connections(house.base_url) as client:
        answers = await asyncio.gather(*(client.post(URL, json=stream_body(question)) for question in questions))
        texts = [texts_of(answer.content) for answer in answers]
        assert [len(pieces) for pieces in texts] == [NUM_TOKENS] * NUM_STREAMS
        assert ["".join(pieces) for pieces in texts] == expected
        assert engine.stats().generation_tokens_total == NUM_STREAMS * NUM_TOKENS


async def test_clients_that_leave_at_any_point_leave_nothing_behind() -> None:
    chance = random.Random(7)
    async with serving(synthetic(itl_ms=1, ttft_ms=1, max_num_seqs=NUM_LEAVING // 2)) as house:
        staying = asyncio.create_task(post(house, stream_body("stay")))
        await asyncio.gather(*(leave(house, chance.randrange(8)) for _ in range(NUM_LEAVING)))
        assert len(texts_of((await staying).content)) == NUM_TOKENS
        await house.is_empty()
        assert 'status="499"' in house.stage.runtime.metrics.exposition().decode()


async def leave(house: House, num_pieces: int) -> None:
    """Ask for a stream that would take minutes and go after so many pieces; 0: before the headers."""
    async with connected(house) as (reader, writer):
        writer.write(raw_request("headrace.test", stream_body("leave", max_tokens=8000)))
        await writer.drain()
        for _ in range(num_pieces):
            assert await reader.readuntil(b"\n\n")


@asynccontextmanager
async def connected(house: House) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = urlsplit(house.base_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def post(house: House, body: dict[str, object]) -> httpx.Response:
    async with many_connections(house.base_url) as client:
        return await client.post(URL, json=body)


class _Endless:
    """Deltas of 64 KiB without an end. Knows how much of it was made."""

    SIZE = 64 * 1024

    def __init__(self) -> None:
        self.num_bytes = 0
        self.begun = asyncio.Event()
        self.closed = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[Sequence[Delta]]:
        return self

    async def __anext__(self) -> Sequence[Delta]:
        await asyncio.sleep(0)
        self.num_bytes += self.SIZE
        self.begun.set()
        return (Delta(0, "x" * self.SIZE, 1),)

    async def aclose(self) -> None:
        self.closed.set()


async def test_a_client_that_never_reads_is_not_generated_for_and_holds_up_nobody() -> None:
    endless, num_others = _Endless(), 40
    steps = [[Delta(0, "y" * _Endless.SIZE, 1)]] * 50 + [[Delta(0, "", 1, "length")]]
    others = [generation(said(*steps)) for _ in range(num_others)]
    answers: list[Generation] = [generation(endless), *others]
    async with serving(FakeEngine(answers)) as house:
        address = urlsplit(house.base_url)
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(stalled, (address.hostname, address.port))
            await loop.sock_sendall(stalled, raw_request("headrace.test", stream_body("stall")))
            async with asyncio.timeout(WAIT_SECONDS):
                await endless.begun.wait()
            for _ in range(num_others):  # one after the other: 130 MB, in which the stalled one has its turns
                texts = texts_of((await post(house, stream_body("read"))).content)
                assert len(texts) == 50
            # What the kernel buffers for a socket (4 MiB and a little) and uvicorn before it stops asking (64 KiB).
            assert endless.num_bytes < 8 * 1024**2
            assert house.held[:2] == (1, 1)
        await endless.closed.wait()


def test_a_real_server_serves_two_hundred_streams_and_forgets_those_that_leave(tmp_path: Path) -> None:
    """The same with the processes and the event loop that users get."""
    config = tmp_path / "headrace.yaml"
    config.write_text(f"models: [{{id: {MODEL}, engine: synthetic, synthetic: {{itl_ms: 1}}}}]\n")
    with running_server(config, tmp_path / "log") as server:
        asyncio.run(_load(server.base_url))


async def _load(base_url: str) -> None:
    questions = [f"question {number}" for number in range(NUM_STREAMS)]
    expected = await expected_texts(questions)
    async with many_connections(base_url) as client:
        leaving = [asyncio.create_task(_leave_among(client, number % 5)) for number in range(NUM_LEAVING)]
        answers = await asyncio.gather(*(client.post(URL, json=stream_body(question)) for question in questions))
        assert ["".join(texts_of(answer.content)) for answer in answers] == expected
        await asyncio.gather(*leaving)
        async with asyncio.timeout(WAIT_SECONDS):
            while await _num_in_engine(client):
                pass


async def _leave_among(client: httpx.AsyncClient, num_pieces: int) -> None:
    async with client.stream("POST", URL, json=stream_body("leave", max_tokens=8000)) as response:
        pieces = response.aiter_raw()
        for _ in range(num_pieces):
            await anext(pieces)


async def _num_in_engine(client: httpx.AsyncClient) -> int:
    counts = RUNNING.findall((await client.get("/metrics")).text)
    assert len(counts) == 2
    return sum(map(int, counts))
