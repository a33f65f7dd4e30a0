"""The sides of a comparison, as `headrace_server.bench` measures them: two servers, and the engine without a server.

`start_side` times the start of a server: from the start of its process to its first answer to a chat completion.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace_server.bench import measures
from headrace_server.bench.arrivals import BlockPlan, Load
from headrace_server.bench.endpoint import Api, Endpoint
from headrace_server.bench.http_client import fetch
from headrace_server.bench.http_reply import ExchangeFailed
from headrace_server.bench.measures import Measure
from headrace_server.bench.outcomes import error_message
from headrace_server.bench.processes import ServerProcesses
from headrace_server.bench.side import Asking, CpuMeter, HttpSide, Side, SideFailed, process_figures
from headrace_server.bench.stats import percentile
from headrace_server.bench.summary import BlockResult, Latencies, Slo, Tally
from loadtests.launcher import MODEL_NAME, Program, SideName, Subject

RETRY_SECONDS = 0.05
START_TIMEOUT_SECONDS = 180.0

FIRST_ANSWER = Measure("first_answer_seconds", "first answer", "s", digits=2)
LIVEZ = Measure("livez_seconds", "/livez", "s", digits=2)

_NEVER_GETS_BETTER = frozenset({400, 401, 403, 405, 413, 415, 422})

Note = Callable[[Measure, float], None]


class ServerSide:
    """A server that was started here. See `Side`."""

    def __init__(self, program: Program) -> None:
        self.name = str(program.name)
        self.processes: ServerProcesses | None = program.processes
        self._program = program
        asking = Asking(model=MODEL_NAME)
        self._http = HttpSide(self.name, program.endpoint, asking, slo=Slo(), processes=program.processes)

    async def run_block(self, load: Load, number: int) -> BlockResult:
        return await self._program.while_alive(self._http.run_block(load, number))


class EngineSide:
    """vLLM's engine alone (`engine_alone.py`), asked through a pipe; closed loops only. See `Side`."""

    def __init__(self, program: Program) -> None:
        self.name = str(program.name)
        self.processes: ServerProcesses | None = program.processes
        self._program = program

    async def run_block(self, load: Load, number: int) -> BlockResult:
        await self._generate(load.warm_up(number), stream=load.stream)
        meter = CpuMeter(self.processes)
        plan = load.block(number)
        done = await self._generate(plan, stream=load.stream)
        num_tokens, latencies = int(done["num_tokens"]), [float(seconds) for seconds in done["latencies"]]
        figures = {
            measures.REQUEST_RATE: len(latencies) / done["seconds"],
            measures.LATENCY_P50: percentile(latencies, 50),
            measures.LATENCY_P99: percentile(latencies, 99),
            **process_figures(self.processes, meter.seconds(), num_tokens),
        }
        if load.stream:
            figures[measures.THROUGHPUT] = num_tokens / done["seconds"]
        tally = Tally(num_sent=len(plan.requests), num_complete=len(latencies))
        tally.check_integrity()
        return BlockResult(figures, Latencies(latency=latencies), tally, client=None, num_tokens=num_tokens)

    async def _generate(self, plan: BlockPlan, *, stream: bool) -> Any:
        work = {
            "prompts": [request.prompt for request in plan.requests],
            "num_tokens": plan.requests[0].num_tokens,
            "num_streams": plan.num_streams,
            "stream": stream,
        }
        await self._program.ask(work)
        return await self._program.answer()


async def start_side(program: Program, note: Note) -> Side:
    """Wait until a program that was just launched answers; `note` is told how long that took.

    Raises:
        ServerFailed: it ended, or did not answer within 180 s.
    """
    try:
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            return await program.while_alive(_ready(program, note))
    except TimeoutError as error:
        raise program.failed(f"no answer within {START_TIMEOUT_SECONDS:g} s") from error


async def _ready(program: Program, note: Note) -> Side:
    if program.name is SideName.ENGINE:
        await program.answer()
        return EngineSide(program)
    if program.name is SideName.HEADRACE:
        note(LIVEZ, await first_success(program.endpoint, "/livez") - program.launched_at)
    document = Api.CHAT.document(MODEL_NAME, "Say something.", num_tokens=1, stream=False)
    note(FIRST_ANSWER, await first_success(program.endpoint, Api.CHAT.path, document) - program.launched_at)
    return ServerSide(program)


async def first_success(endpoint: Endpoint, path: str, document: object = None) -> float:
    """Ask every 50 ms until the answer is 200; the stamp of that answer's last byte.

    Raises:
        SideFailed: a refusal that no waiting changes.
    """
    while True:
        try:
            reply = await fetch(endpoint, path, document)
        except ExchangeFailed:
            await asyncio.sleep(RETRY_SECONDS)
            continue
        if reply.status == 200:
            return reply.ended_at
        if reply.status in _NEVER_GETS_BETTER:
            raise SideFailed(f"{path} answered {reply.status}: {error_message(reply.body)}")
        await asyncio.sleep(RETRY_SECONDS)


async def launch_and_start(name: SideName, subject: Subject, folder: Path, note: Note) -> tuple[Program, Side]:
    """`Program.launch` and `start_side`; a program that does not start is ended."""
    program = await Program.launch(name, subject, folder)
    try:
        return program, await start_side(program, note)
    except BaseException:
        await program.stop()
        raise
