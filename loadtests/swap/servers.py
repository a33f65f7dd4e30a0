"""Starts the sides of `bench-swap` and ends them with everything that they have started.

Headrace gets a configuration, vLLM's own server the engine arguments that Headrace makes of it; both get the same
environment, and folders of their own. A server ends with its context, and with this program, however that ends.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from headrace_server.bench.endpoint import Endpoint
from headrace_server.bench.http_client import fetch
from headrace_server.bench.http_reply import ExchangeFailed
from headrace_server.bench.turns import Turns
from loadtests.cache_children import ended_with_us
from loadtests.cache_registry import free_port
from loadtests.cache_served import WrongResult
from loadtests.cache_starts import with_environment
from loadtests.launcher import LOOPBACK, Program, SideName, Subject
from loadtests.swap.asking import ANSWER_SECONDS, Answer, answer, first_answer
from loadtests.swap.findings import VLLM
from loadtests.swap.journal import Journal
from loadtests.swap.leftovers import remove, shared_files
from loadtests.swap.residents import Residents, parse_residents
from loadtests.swap.subjects import BenchModel

VLLM_SERVER = ("-m", "vllm.entrypoints.openai.api_server")

_ADMIN_SECONDS = 120.0
_LIVEZ_SECONDS = 30.0
# An answer has come a little before its lease is given back.
_SETTLE_SECONDS = 5.0
_RETRY_SECONDS = 0.02


class Headrace:
    """A running Headrace; `headrace` makes it."""

    def __init__(self, program: Program, journal: Journal) -> None:
        self.program = program
        self.journal = journal

    async def first_answer(self, model: BenchModel, *, seconds: float = ANSWER_SECONDS) -> Answer:
        """See `asking.first_answer`."""
        return await first_answer(self.program, model, seconds=seconds)

    async def answer(self, model: BenchModel) -> Answer:
        """See `asking.answer`; the server has to live meanwhile."""
        return await self.program.while_alive(answer(self.program.endpoint, model))

    async def until_alive(self) -> None:
        """Wait until it answers at all. Raises ServerFailed."""
        try:
            async with asyncio.timeout(_LIVEZ_SECONDS):
                await self.program.while_alive(self._until_alive())
        except TimeoutError as error:
            raise self.program.failed(f"does not answer after {_LIVEZ_SECONDS:g} s") from error

    async def _until_alive(self) -> None:
        while True:
            try:
                await fetch(self.program.endpoint, "/livez")
            except ExchangeFailed:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def residents(self) -> Residents:
        """Who is in memory, as the server says. Raises ServerFailed."""
        return parse_residents(await self._admin("/admin/models"))

    async def until_resident(self, *models: BenchModel) -> None:
        """Wait until exactly these are in memory and idle. Raises WrongResult where they will not be."""
        until = time.monotonic() + _SETTLE_SECONDS
        while not (found := await self.residents()).are(*(model.id for model in models)):
            if time.monotonic() > until:
                wanted = ", ".join(model.id for model in models) or "nothing"
                raise WrongResult(f"{wanted} should be in memory, idle, and nothing else: {found}")
            await asyncio.sleep(_RETRY_SECONDS)

    async def load(self, model: BenchModel) -> None:
        """Bring a model into memory. Raises ServerFailed."""
        await self._admin(f"/admin/models/{model.id}/load", {})

    async def unload(self, *models: BenchModel) -> None:
        """Take models out of memory. Raises ServerFailed."""
        for model in models:
            await self._admin(f"/admin/models/{model.id}/unload", {})

    async def _admin(self, path: str, document: object = None) -> bytes:
        try:
            reply = await self.program.while_alive(
                fetch(self.program.endpoint, path, document, timeout_seconds=_ADMIN_SECONDS)
            )
        except ExchangeFailed as error:
            raise self.program.failed(f"{path}: {error}") from error
        if reply.status != 200:
            raise self.program.failed(f"{path} answered {reply.status}: {reply.body[:300].decode(errors='replace')}")
        return reply.body


@asynccontextmanager
async def headrace(configuration: str, folder: Path) -> AsyncIterator[Headrace]:
    """Start Headrace; `folder` is this start's own. Nothing is waited for."""
    program = await Program.launch(SideName.HEADRACE, Subject(configuration, (), folder, on_cpu=True), folder)
    journal = Journal(folder / f"{SideName.HEADRACE.name.lower()}-{program.endpoint.port}.log")
    with ended_with_us(program.processes.leader):
        try:
            yield Headrace(program, journal)
        finally:
            await _end(program)


async def _end(program: Program) -> None:
    shared = shared_files(entry.pid for entry in program.processes.entries())
    await program.stop()
    remove(shared)


@asynccontextmanager
async def vllm(engine_line: tuple[str, ...], folder: Path) -> AsyncIterator[Program]:
    """Start vLLM's own server; `folder` is this start's own. Nothing is waited for."""
    endpoint = Endpoint(LOOPBACK, free_port())
    listen = ["--host", endpoint.host, "--port", str(endpoint.port)]
    # It leaves its sockets behind.
    environment = {**os.environ, "TMPDIR": str(folder)}
    line = with_environment(environment, [sys.executable, *VLLM_SERVER, *listen, *engine_line])
    program = await Program.spawn(SideName.VLLM, line, endpoint, folder)
    with ended_with_us(program.processes.leader):
        try:
            yield program
        finally:
            await _end(program)


class RestartedVllm:
    """The way of proxies that start `vllm serve` for each model: the one that runs is ended, and then the other one is
    started. Use as a context; one task calls."""

    def __init__(self, engine_lines: dict[str, tuple[str, ...]], folder: Path, turns: Turns) -> None:
        self._engine_lines = engine_lines
        self._folder = folder
        self._turns = turns
        self._running = AsyncExitStack()
        self._num_starts = 0
        self.stop_seconds = 0.0

    async def __aenter__(self) -> "RestartedVllm":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def swap(self, model: BenchModel) -> tuple[float, Answer]:
        """End what runs, start `model`, ask it: seconds from the end's beginning to the first token, and the answer.

        `stop_seconds` is then what the end took. Raises HeadraceError.
        """
        began = time.monotonic()
        await self._stop()
        self.stop_seconds = time.monotonic() - began
        folder = self._folder / f"vllm-{self._num_starts}"
        self._num_starts += 1
        folder.mkdir()
        program = await self._running.enter_async_context(vllm(self._engine_lines[model.id], folder))
        self._turns.add(VLLM, program.processes)
        found = await first_answer(program, model)
        return found.first_at - began, found

    async def _stop(self) -> None:
        self._turns.remove(VLLM)
        await self._running.aclose()
