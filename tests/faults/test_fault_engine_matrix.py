"""Every fault of an engine at every moment of its life: EngineCore or worker, killed or stopped, idle, in prefill, in
decode, while it starts, while the server drains. No request is lost silently, the server lives, the next request is
answered, and nothing is left over.

Takes about ten minutes, so only FAULT_MATRIX=1 (`make test-faults`) runs it. Each case has a model of its own, since a
model that goes wrong too often is left alone for a while.
"""

import asyncio
import importlib.util
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import product
from pathlib import Path

import httpx
import pytest

from tests.fakes.accounted_client import Account, Ending, ask
from tests.fakes.process import ServerProcess, running_server

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif("FAULT_MATRIX" not in os.environ, reason="FAULT_MATRIX is not set"),
]

ENGINE, WORKER, FORK_SERVER = "VLLM::EngineCore", "VLLM::Worker", "VLLM::ForkServer"
HOLD_SECONDS = 25
END_SECONDS = 60


class Moment(Enum):
    """What the engine is doing when it is hit."""

    IDLE = "idle"
    PREFILL = "prefill"
    DECODE = "decode"
    LOAD = "load"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the matrix."""

    model: str
    number: signal.Signals
    process: str
    moment: Moment


CASES = [
    Case(f"m{at}", *cell) for at, cell in enumerate(product((signal.SIGKILL, signal.SIGSTOP), (ENGINE, WORKER), Moment))
]


def named(case: Case) -> str:
    return f"{case.number.name}-{case.process.removeprefix('VLLM::')}-{case.moment.value}"


def cases(*, drain: bool) -> list[object]:
    return [pytest.param(case, id=named(case)) for case in CASES if (case.moment is Moment.DRAIN) is drain]


def configuration(models: list[str], *, load: str) -> str:
    """Steps are short, so that the longest takes less than a heartbeat may."""
    arguments = "{max_num_batched_tokens: 256, max_num_seqs: 16, kv_cache_memory_bytes: 300000000}"
    return (
        f"server: {{drain_seconds: {END_SECONDS}}}\n"
        f"engine: {{heartbeat_seconds: 4, hold_seconds: {HOLD_SECONDS}}}\n"
        "models:\n"
    ) + "".join(
        f"  - {{id: {model}, source: 'embedded:smollm2-135m-instruct', load: {load}, arguments: {arguments}}}\n"
        for model in models
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all cases that it survives."""
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "headrace.yaml").write_text(configuration([case.model for case in CASES], load="demand"))
    with running_server(folder / "headrace.yaml", folder / "log") as process:
        yield process


def chat(model: str, *, stream: bool, num_tokens: int, prompt: str = "Count to ten thousand.") -> dict[str, object]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "messages": messages, "max_tokens": num_tokens, "ignore_eos": True, "stream": stream}


@dataclass(frozen=True, slots=True)
class Open:
    """Requests under way, streams first."""

    tasks: tuple[asyncio.Task[Account], ...] = ()

    async def accounts(self) -> list[Account]:
        """How they ended."""
        return list(await asyncio.gather(*self.tasks))


async def decoding(server: ServerProcess, model: str) -> Open:
    """Streams that have begun, and a unary answer that has too, for all that its client knows nothing of it."""
    begun = [asyncio.Event() for _ in range(3)]
    streams = [
        asyncio.create_task(ask(server.port, chat(model, stream=True, num_tokens=400), begun=event)) for event in begun
    ]
    unary = asyncio.create_task(ask(server.port, chat(model, stream=False, num_tokens=60)))
    for event in begun:
        await event.wait()
    return Open((*streams, unary))


async def prefilling(server: ServerProcess, model: str) -> Open:
    """A stream and a unary answer of which the engine reads the prompts."""
    begun = asyncio.Event()
    prompts = [f"{name}: {'very ' * 3000}" for name in ("a", "b")]
    tasks = [
        asyncio.create_task(ask(server.port, chat(model, stream=stream, num_tokens=4, prompt=prompt), begun=begun))
        for stream, prompt in zip((True, False), prompts, strict=True)
    ]
    await asyncio.to_thread(until_in_use, server, model, len(tasks))
    await asyncio.sleep(0.4)
    assert not any(task.done() for task in tasks)
    assert not begun.is_set()
    return Open(tuple(tasks))


async def loading(server: ServerProcess, model: str, process: str) -> Open:
    """A stream and a unary answer that are held while the engine starts."""
    tasks = [
        asyncio.create_task(ask(server.port, chat(model, stream=stream, num_tokens=4))) for stream in (True, False)
    ]
    await asyncio.to_thread(server.until_called, process)
    return Open(tuple(tasks))


def until_in_use(server: ServerProcess, model: str, number: int) -> None:
    while status(server, model)["num_leases"] != number:
        pass


def status(server: ServerProcess, model: str) -> dict[str, object]:
    models = httpx.get(f"{server.base_url}/admin/models", trust_env=False).json()["models"]
    return next(dict(shown) for shown in models if shown["id"] == model)


async def operate(server: ServerProcess, model: str, action: str) -> None:
    async with httpx.AsyncClient(base_url=server.base_url, trust_env=False, timeout=60) as http:
        (await http.post(f"/admin/models/{model}/{action}", json={})).raise_for_status()


async def under_way(server: ServerProcess, case: Case) -> Open:
    """Bring the model to the moment."""
    if case.moment is Moment.LOAD:
        return await loading(server, case.model, case.process)
    await operate(server, case.model, "load")
    match case.moment:
        case Moment.PREFILL:
            return await prefilling(server, case.model)
        case Moment.DECODE:
            return await decoding(server, case.model)
        case _:
            return Open()


@pytest.mark.parametrize("case", cases(drain=False))
async def test_no_request_is_lost_silently_and_the_next_one_is_answered(server: ServerProcess, case: Case) -> None:
    requests = await under_way(server, case)
    server.kill(case.process, case.number)
    for account in await requests.accounts():
        assert ended_well(account, case), account
    await until_answered(server, case)
    await operate(server, case.model, "unload")
    assert nothing_of_an_engine(server)


def ended_well(account: Account, case: Case) -> bool:
    """Whether nothing happened to a request that may not."""
    match case.moment:
        case Moment.LOAD:  # nobody can say whether the next start would fare better
            code = "engine_down" if case.number is signal.SIGKILL else "model_loading"
            return account.ending is Ending.TOLD and account.code == code
        case _ if account.body["stream"] and case.moment is not Moment.PREFILL:
            return account.ending is Ending.TOLD and account.code == "engine_down" and account.has_begun
        case _:
            return account.ending is Ending.ANSWERED


async def until_answered(server: ServerProcess, case: Case) -> None:
    """The next request is answered: at once, or, after a start that failed, once its model may be tried again. A start
    that hangs is the operator's to end."""
    if case.moment is Moment.LOAD and case.number is signal.SIGSTOP:
        await operate(server, case.model, "unload")
    account = await ask(server.port, chat(case.model, stream=False, num_tokens=4))
    if case.moment is Moment.LOAD and case.number is signal.SIGKILL:
        assert (account.ending, account.code) == (Ending.TOLD, "engine_down")
        await asyncio.sleep(int(account.headers["retry-after"]))
        account = await ask(server.port, chat(case.model, stream=False, num_tokens=4))
    assert account.ending is Ending.ANSWERED, account


def nothing_of_an_engine(server: ServerProcess) -> bool:
    """Whether no process, no folder and no shared memory of any engine is left, while the server lives."""
    left = [*server.called(ENGINE), *server.called(WORKER), *server.called(FORK_SERVER)[1:]]
    files = [*server.scratch.glob("headrace-*/e*"), *(path for path in server.shared_memory if path.exists())]
    assert (left, files, server.num_zombies) == ([], [], 0)
    return True


@pytest.mark.parametrize("case", cases(drain=True))
async def test_a_server_that_drains_brings_its_requests_to_an_end_all_the_same(tmp_path: Path, case: Case) -> None:
    (tmp_path / "headrace.yaml").write_text(configuration([case.model], load="startup"))
    with running_server(tmp_path / "headrace.yaml", tmp_path / "log") as server:
        requests = await decoding(server, case.model)
        os.kill(server.pid, signal.SIGTERM)
        await asyncio.to_thread(until_draining, server)
        server.kill(case.process, case.number)
        for account in await requests.accounts():
            assert ended_well(account, case), account
        assert await asyncio.to_thread(server.has_ended, END_SECONDS)


def until_draining(server: ServerProcess) -> None:
    while httpx.get(f"{server.base_url}/readyz", trust_env=False).status_code != 503:
        pass
