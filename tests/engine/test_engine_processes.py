"""Real engines on vLLM in this process: how they start, die, hang and are closed, and what they leave behind.

Each engine takes 2 to 5 s to start, because it is forked from a process that has imported vLLM; the tests share that
process, one event loop, and an engine that has to go on serving whatever happens to the others.
"""

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Barrier
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import pytest_asyncio

from headrace_models.preparation import prepare
from headrace_models.reference import parse_reference
from headrace_server.domain import Operation
from headrace_server.engine.base import EngineSpec
from headrace_server.engine.registry import build_engine
from headrace_server.engine.vllm_engine import VllmEngine, preload
from headrace_server.engine.vllm_forkserver import fork_server
from headrace_server.engine.vllm_leftovers import shared_memory_of
from headrace_server.engine.vllm_processes import warn_of_slow_start
from headrace_server.engine.vllm_start import unload
from headrace_server.errors import EngineDied, EngineFault
from headrace_server.generation import Generation
from tests.fakes.engine_requests import MODEL, OpenSeat, engine_request

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # importing vLLM warns about itself
]

CACHE = Path("~/.cache/headrace").expanduser()
KINDS = ["EngineCore", "Worker"]
NUM_THREADS = 4
SECONDS = 20
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder with a short name (sockets lie in it), and what engines are forked from."""
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        preload(Path(folder), fast_start=True)
        yield Path(folder)
        unload(Path(folder))
    os.environ.clear()
    os.environ.update(environment)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bystander(scratch: Path) -> AsyncIterator[VllmEngine]:
    """An engine that nothing happens to. The loop's threads are all there before any test looks for new ones."""
    barrier = Barrier(NUM_THREADS)
    executor = ThreadPoolExecutor(NUM_THREADS)
    asyncio.get_running_loop().set_default_executor(executor)
    await asyncio.gather(*(asyncio.to_thread(barrier.wait) for _ in range(NUM_THREADS)))
    engine = engine_of(scratch, cpus="1")
    await engine.start()
    await answer(engine)  # its own thread is there, too
    yield engine
    await engine.close()


def engine_of(scratch: Path, **fields: Any) -> VllmEngine:
    directory = prepare(parse_reference("embedded:smollm2-135m-instruct"), CACHE).directory
    engine = build_engine(EngineSpec(MODEL, "vllm", directory, scratch=scratch, **{"cpus": "0", **fields}))
    assert isinstance(engine, VllmEngine)
    return engine


@asynccontextmanager
async def running(scratch: Path, **fields: Any) -> AsyncIterator[VllmEngine]:
    """An engine of its own for one test; nothing of it is left afterwards."""
    before = things(scratch)
    engine = engine_of(scratch, **fields)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()
    assert not things(scratch) - before


def things(scratch: Path) -> set[str]:
    """Whatever an engine could leave: files and sockets, processes, and shared memory that nobody uses."""
    processes = {f"process {process.pid}" for process in psutil.process_iter() if is_ours(process, scratch)}
    in_use = {path.name for path in shared_memory_of(psutil.pids())}
    return {*os.listdir("/dev/shm"), *os.listdir(scratch), *processes} - in_use


def is_ours(process: psutil.Process, scratch: Path) -> bool:
    try:
        return bool(process.ppid() == fork_server(scratch).pid and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def processes_of(scratch: Path) -> dict[str, psutil.Process]:
    """EngineCore and worker of the engine that started last."""
    folder = max(scratch.glob("e[0-9]*"), key=lambda path: path.stat().st_ctime_ns)
    found = [psutil.Process(int(path.name)) for path in folder.iterdir() if path.name.isdigit()]
    return {process.cmdline()[0].partition("::")[2].split("_")[0]: process for process in found}


async def answer(engine: VllmEngine, num_tokens: int = 8) -> str:
    """What it says to the question."""
    payload = {
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": num_tokens,
        "ignore_eos": True,
    }
    generation = await engine.submit(engine_request(Operation.CHAT, payload, stream=True), OpenSeat())
    assert isinstance(generation, Generation)
    return "".join([delta.text async for step in generation.deltas for delta in step])


async def until_raised(call: Callable[[], Awaitable[None]]) -> None:
    """Call until it raises EngineDied."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                await call()
            except EngineDied:
                return
            await asyncio.sleep(0.01)


async def test_engines_are_forked_each_on_its_own_processors(bystander: VllmEngine, scratch: Path) -> None:
    async with running(scratch) as engine:
        processes = processes_of(scratch)
        assert sorted(processes) == KINDS
        assert {process.ppid() for process in processes.values()} == {fork_server(scratch).pid}
        worker = processes["Worker"]
        assert {tuple(psutil.Process(thread.id).cpu_affinity()) for thread in worker.threads()} == {(0,)}
        assert "VLLM_CPU_OMP_THREADS_BIND" not in os.environ
        assert "Paris" in await answer(engine)
        assert "Paris" in await answer(bystander)


async def test_threads_of_a_worker_stay_on_one_processor_each(bystander: VllmEngine, scratch: Path) -> None:
    async with running(scratch, cpus="0-1") as engine:
        worker = processes_of(scratch)["Worker"]
        assert psutil.Process(worker.pid).cpu_affinity() == [0]
        assert [1] in [psutil.Process(thread.id).cpu_affinity() for thread in worker.threads()]
        assert "Paris" in await answer(engine)


async def test_an_engine_is_measured_with_its_cache(bystander: VllmEngine, scratch: Path) -> None:
    small, large = 256 << 20, 768 << 20
    sizes = []
    for size in (small, large):
        engine = engine_of(scratch, arguments={"kv_cache_memory_bytes": size})
        info = await engine.start()
        await engine.close()
        assert info.memory_bytes is not None
        sizes.append(info.memory_bytes)
    assert abs((sizes[1] - sizes[0]) - (large - small)) < 64 << 20


@pytest.mark.parametrize("kind", KINDS)
async def test_a_killed_process_is_the_death_of_its_engine_and_of_no_other(
    bystander: VllmEngine, scratch: Path, kind: str
) -> None:
    async with running(scratch) as engine:
        stream = asyncio.ensure_future(answer(engine, 4000))
        await asyncio.sleep(0.3)
        processes_of(scratch)[kind].kill()
        await until_raised(engine.check)
        with pytest.raises(EngineDied):
            await asyncio.wait_for(stream, SECONDS)
        with pytest.raises(EngineDied):
            await engine.heartbeat()
        await until_raised(lambda: _submit(engine))
    async with running(scratch) as engine:  # in its place
        assert "Paris" in await answer(engine)
    assert "Paris" in await answer(bystander)


async def _submit(engine: VllmEngine) -> None:
    await answer(engine, 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stopped_process_is_seen_by_a_heartbeat_and_ended_by_a_close(
    bystander: VllmEngine, scratch: Path, kind: str
) -> None:
    async with running(scratch) as engine:
        await asyncio.wait_for(engine.heartbeat(), SECONDS)
        stream = asyncio.ensure_future(answer(engine, 4000))
        await asyncio.sleep(0.3)
        processes_of(scratch)[kind].send_signal(signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.heartbeat(), 1)
        await engine.check()  # it lives
        await engine.close()
        with pytest.raises(EngineDied):
            await asyncio.wait_for(stream, SECONDS)
    assert "Paris" in await answer(bystander)


async def test_a_close_ends_what_is_pending_and_can_be_repeated(bystander: VllmEngine, scratch: Path) -> None:
    async with running(scratch) as engine:
        streams = [asyncio.ensure_future(answer(engine, 4000)) for _ in range(3)]
        await asyncio.sleep(0.3)
        await asyncio.gather(engine.close(), engine.close())
        ends = await asyncio.wait_for(asyncio.gather(*streams, return_exceptions=True), SECONDS)
        assert [type(end) for end in ends] == [EngineDied] * 3
        with pytest.raises(EngineDied):
            await answer(engine)
        with pytest.raises(EngineDied):
            await engine.check()


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.2])
async def test_a_start_that_is_closed_ends_at_once_and_leaves_nothing(
    bystander: VllmEngine, scratch: Path, seconds: float
) -> None:
    before = things(scratch)
    engine = engine_of(scratch)
    start = asyncio.ensure_future(engine.start())
    await asyncio.sleep(seconds)
    await engine.close()
    with pytest.raises(EngineFault, match="closed while it was starting"):
        await asyncio.wait_for(start, 1)
    with contextlib.suppress(TimeoutError):  # a process may have been on its way
        await until_raised(lambda: _nothing_new(scratch, before))
    assert not things(scratch) - before


async def _nothing_new(scratch: Path, before: set[str]) -> None:
    if things(scratch) <= before:
        raise EngineDied("nothing is left")


async def test_an_engine_that_finds_too_little_memory_says_so(bystander: VllmEngine, scratch: Path) -> None:
    before = things(scratch)
    engine = engine_of(scratch, arguments={"kv_cache_memory_bytes": 1 << 40})
    with pytest.raises(EngineFault, match="Available memory") as failure:
        await engine.start()
    assert "\n" not in failure.value.message
    await engine.close()
    assert not things(scratch) - before


async def test_without_what_it_is_forked_from_an_engine_starts_all_the_same(
    scratch: Path, bystander: VllmEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The last test here: there is no way back."""
    warn_of_slow_start.cache_clear()
    forked_from = fork_server(scratch).pid
    assert forked_from is not None
    os.kill(forked_from, signal.SIGKILL)
    engine = engine_of(scratch)
    with caplog.at_level(logging.WARNING):
        await engine.start()
    try:
        assert [record.message for record in caplog.records] == ["engine_fast_start_off"]
        assert processes_of(scratch)["EngineCore"].ppid() == os.getpid()
        assert "Paris" in await answer(engine)
        await bystander.check()
        assert "Paris" in await answer(bystander)
    finally:
        await engine.close()
