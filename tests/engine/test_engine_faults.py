"""Engines that die and engines that hang, under clients of OpenAI's SDK: who has begun to hear an answer is told that
it ends, everybody else is answered by the next engine, and the server says how it stands.

One server with one model for the whole file, so that nothing can serve while its engine restarts. The third fault in a
row brings a pause of ten seconds; that is the last test's.
"""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.fakes.process import ServerProcess, running_server

MODEL = "smollm2-135m-instruct"
HEARTBEAT_SECONDS = 5.0  # on a machine that is busy a step has been seen to take 3
NUM_STREAMS, NUM_UNARY, NUM_AT_ONCE = 16, 4, 10
NUM_TOKENS = 150
CONFIG = f"""
telemetry: {{log_format: json}}
engine: {{heartbeat_seconds: {HEARTBEAT_SECONDS}}}
scheduling: {{interactive_reserve: 0, target_step_seconds: 60}}
models:
  - id: {MODEL}
    source: embedded:{MODEL}
    arguments: {{max_num_seqs: {NUM_AT_ONCE}, max_num_batched_tokens: 512, kv_cache_memory_bytes: 300000000}}
"""
COUNT: Any = [{"role": "user", "content": "Count to ten thousand."}]
ENGINE, WORKER = "VLLM::EngineCore", "VLLM::Worker"
# The server's own word for when it knew of a death. Who asks it has to get an answer from a machine that is busy.
NOTICED_SECONDS, ANSWERED_SECONDS = 0.5, 1.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faulty")


@pytest.fixture(scope="module")
def faulty(folder: Path) -> Iterator[ServerProcess]:
    """The server; that it ends well, and leaves nothing, is part of the test."""
    (folder / "headrace.yaml").write_text(CONFIG)
    with running_server(folder / "headrace.yaml", folder / "log") as server:
        yield server


@pytest.fixture
async def sdk(faulty: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{faulty.base_url}/v1", api_key="unused", max_retries=0, timeout=120
    ) as client:
        yield client


@dataclass(slots=True, eq=False)
class Heard:
    """What one client has heard, and how it ended: a `finish_reason`, or the code of an error."""

    num_pieces: int = 0
    text: str = ""
    finish_reason: str = ""
    error: str = ""


async def ask(
    sdk: openai.AsyncOpenAI,
    heard: Heard,
    *,
    stream: bool,
    num_tokens: int = NUM_TOKENS,
    on_begin: Callable[[], None] = lambda: None,
) -> None:
    """Ask for so many tokens and write down what comes; `on_begin`: a stream's first piece has."""
    asked: Any = {"model": MODEL, "messages": COUNT, "max_tokens": num_tokens, "temperature": 0}
    try:
        if not stream:
            answer = await sdk.chat.completions.create(**asked, extra_body={"ignore_eos": True})
            heard.text, heard.finish_reason = answer.choices[0].message.content, answer.choices[0].finish_reason
            return
        async for chunk in await sdk.chat.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}):
            heard.num_pieces += 1
            if heard.num_pieces == 1:
                on_begin()
            heard.text += chunk.choices[0].delta.content or ""
            heard.finish_reason = chunk.choices[0].finish_reason or ""
    except openai.APIError as error:
        heard.error = str(error.code)


@dataclass(slots=True)
class Seen:
    """What somebody who keeps looking has seen: when the server was not ready and when it was again, in seconds from
    the fault, and every state and detail of the model."""

    began: float = field(default_factory=time.time)
    not_ready_seconds: float | None = None
    ready_seconds: float | None = None
    states: list[tuple[str, str]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


@asynccontextmanager
async def looking(server: ServerProcess) -> AsyncIterator[Seen]:
    """Look at `/readyz` and `/v1/models` all the time, from now on until the server is ready again."""
    seen = Seen()
    async with httpx.AsyncClient(base_url=server.base_url, trust_env=False, timeout=10) as http:
        task = asyncio.create_task(_look(http, seen))
        try:
            yield seen
            await task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _look(http: httpx.AsyncClient, seen: Seen) -> None:
    while seen.ready_seconds is None:
        ready = await http.get("/readyz")
        now = time.time() - seen.began
        if ready.status_code == 503:
            seen.not_ready_seconds = seen.not_ready_seconds or now
            seen.reasons.append(ready.json()["reason"])
        elif seen.not_ready_seconds is not None:
            seen.ready_seconds = now
        model = (await http.get(f"/v1/models/{MODEL}")).json()
        if (shown := (model["state"], model["detail"])) not in seen.states:
            seen.states.append(shown)
        await asyncio.sleep(0.02)


def noticed_seconds(folder: Path, seen: Seen) -> float:
    """From the latest fault to the moment in which the server knew that the engine was gone."""
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines() if line.startswith("{")]
    deaths = [line["time"] for line in lines if line["event"] == "engine_died"]
    return datetime.fromisoformat(deaths[-1]).timestamp() - seen.began


def processes(server: ServerProcess) -> tuple[int, int]:
    return len(server.called(ENGINE)), len(server.called(WORKER))


async def test_a_kill_in_the_middle_cuts_what_had_begun_and_everybody_else_is_answered(
    faulty: ServerProcess, sdk: openai.AsyncOpenAI, folder: Path
) -> None:
    unary, streams = [Heard() for _ in range(NUM_UNARY)], [Heard() for _ in range(NUM_STREAMS)]
    async with asyncio.TaskGroup() as tasks:
        for heard in unary:
            tasks.create_task(ask(sdk, heard, stream=False))
        await asyncio.sleep(0.2)
        first = asyncio.Semaphore(0)
        for heard in streams:
            tasks.create_task(ask(sdk, heard, stream=True, on_begin=first.release))
        for _ in range(NUM_AT_ONCE - NUM_UNARY):
            await first.acquire()
        async with looking(faulty) as seen:
            begun = [heard for heard in streams if heard.num_pieces]
            old = faulty.kill(ENGINE)
    held = [heard for heard in (*streams, *unary) if heard not in begun]
    assert {(heard.error, heard.finish_reason) for heard in begun} == {("engine_down", "")}
    assert {(heard.error, heard.finish_reason) for heard in held} == {("", "length")}
    assert len(held) >= NUM_STREAMS + NUM_UNARY - NUM_AT_ONCE
    assert len({heard.text for heard in held}) == 1
    assert noticed_seconds(folder, seen) < NOTICED_SECONDS
    assert seen.not_ready_seconds is not None
    assert seen.not_ready_seconds < ANSWERED_SECONDS
    assert any(state == "loading" and detail.startswith("restarting: ") for state, detail in seen.states)
    assert processes(faulty) == (1, 1)
    assert faulty.called(ENGINE) != [old]


async def test_an_engine_that_hangs_is_found_and_a_request_that_it_had_is_answered_by_the_next(
    faulty: ServerProcess, sdk: openai.AsyncOpenAI, folder: Path
) -> None:
    (hanging,) = faulty.called(ENGINE)
    async with looking(faulty) as seen:
        faulty.kill(ENGINE, signal.SIGSTOP)
        held = Heard()
        await ask(sdk, held, stream=True, num_tokens=8)
    assert (held.error, held.finish_reason) == ("", "length")
    # A heartbeat begins within a quarter of the limit; the rest is slack for a machine that is busy.
    assert HEARTBEAT_SECONDS <= noticed_seconds(folder, seen) < 2 * HEARTBEAT_SECONDS
    assert seen.not_ready_seconds is not None
    assert ("loading", f"restarting: the engine hangs: nothing moved for {HEARTBEAT_SECONDS:g} s") in seen.states
    assert processes(faulty) == (1, 1)
    assert faulty.called(ENGINE) != [hanging]


async def test_an_idle_engine_whose_worker_dies_is_found_and_back_without_anybody_asking(
    faulty: ServerProcess, sdk: openai.AsyncOpenAI, folder: Path
) -> None:
    async with looking(faulty) as seen:
        faulty.kill(WORKER)
    assert noticed_seconds(folder, seen) < NOTICED_SECONDS
    assert seen.not_ready_seconds is not None
    assert seen.not_ready_seconds < ANSWERED_SECONDS
    assert "the engine of this model has stopped" in seen.reasons[0]
    heard = Heard()
    await ask(sdk, heard, stream=False, num_tokens=4)
    assert heard.finish_reason == "length"
    assert processes(faulty) == (1, 1)
