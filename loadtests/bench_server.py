"""Headrace beside vLLM's own server: same model, same engine arguments, same client, in alternation.

    python loadtests/bench_server.py [--model DIR|REF] [--runs N] [--streams 16] [--tokens 128] [--json FILE]

A run starts both servers, the one first that was second in the run before, and times each from the start of its
process to the first answer. Then blocks of concurrent streams alternate, A B B A. Whichever side has no turn is
stopped with all of its processes, so that it takes no processor time from the other. On GPUs, where two engines do
not fit side by side, each server has its blocks before the other one starts. One uncounted start comes first, so that
no side reads its libraries from disk. The servers are ended in every case, also by Ctrl-C.

Exit codes: 0 measured (whether targets are met stands in the table), 1 a server failed, 2 usage, 130 interrupted.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

import uvloop
from rich.console import Console

if not __package__:  # run as a script: find the package, not its modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from headrace_server.errors import HeadraceError
from headrace_server.settings.schema import DEFAULT_MODEL
from loadtests import bench_report
from loadtests.bench_report import Measure, Samples, Setup
from loadtests.chat_load import Load, first_answer, first_success, run_block
from loadtests.launcher import Server, ServerFailed, Side, Subject, prepare_subject
from loadtests.process_table import PROC

NUM_BLOCKS = 4
WARM_UP_TOKENS = 32
START_TIMEOUT_SECONDS = 180.0
# A whole run is two starts of 15 to 60 s and eight blocks of about 5 s.
LIMIT_SECONDS_PER_RUN = 150.0

progress = Console(stderr=True, highlight=False)


class Action(StrEnum):
    """What is done with a server."""

    START = "start"
    BLOCK = "block"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run; the other side rests meanwhile."""

    action: Action
    side: Side


def run_plan(number: int, num_blocks: int, *, together: bool) -> list[Step]:
    """The steps of one run. Odd runs begin with the other side; so does every other pair of blocks."""
    order = tuple(Side) if number % 2 == 0 else tuple(reversed(Side))
    starts, stops = ([Step(action, side) for side in order] for action in (Action.START, Action.STOP))
    if together:
        pairs = [order if pair % 2 == 0 else tuple(reversed(order)) for pair in range(num_blocks)]
        return [*starts, *(Step(Action.BLOCK, side) for pair in pairs for side in pair), *stops]
    return [
        step
        for start, stop in zip(starts, stops, strict=True)
        for step in (start, *[Step(Action.BLOCK, start.side)] * num_blocks, stop)
    ]


class Run:
    """Carries out the plan of one run. Use as an async context: leaving it ends every server that is still up."""

    def __init__(self, subject: Subject, load: Load, *, folder: Path, label: str) -> None:
        self.samples = Samples()
        self._subject = subject
        self._load = load
        self._folder = folder
        self._label = label
        self._servers: dict[Side, Server] = {}
        self._num_blocks = dict.fromkeys(Side, 0)

    async def __aenter__(self) -> "Run":
        return self

    async def __aexit__(self, *_: object) -> None:
        endings = [server.stop() for server in self._servers.values()]
        for failure in await asyncio.gather(*endings, return_exceptions=True):
            if isinstance(failure, BaseException):
                raise failure

    async def carry_out(self, plan: list[Step]) -> None:
        """All steps in order.

        Raises:
            ServerFailed: a server failed.
        """
        for step in plan:
            await self._take(step)

    async def _take(self, step: Step) -> None:
        for side, server in self._servers.items():
            if side is not step.side:
                await server.pause()
        match step.action:
            case Action.START:
                await self.start(step.side)
            case Action.BLOCK:
                await self._block(self._servers[step.side])
            case Action.STOP:
                await self._stop(step.side)
            case _:
                assert_never(step.action)

    async def start(self, side: Side) -> None:
        """Start a server and time it."""
        server = self._servers[side] = await Server.launch(side, self._subject, self._folder)
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                seconds = await server.while_alive(self._time_start(server))
        except TimeoutError as error:
            raise server.failed(f"no answer within {START_TIMEOUT_SECONDS:g} s") from error
        progress.print(f"  {side}: first answer after {seconds:.1f} s")

    async def _time_start(self, server: Server) -> float:
        if server.side is Side.HEADRACE:
            alive = await first_success(server.address, "/livez")
            self.samples.add(Measure.LIVEZ, server.side, alive - server.launched_at)
        seconds = await first_answer(server.address) - server.launched_at
        self.samples.add(Measure.FIRST_ANSWER, server.side, seconds)
        return seconds

    async def _block(self, server: Server) -> None:
        await server.resume()
        number = self._num_blocks[server.side] = self._num_blocks[server.side] + 1
        label = f"{self._label}-{number}"
        warm_up = replace(self._load, num_tokens=min(WARM_UP_TOKENS, self._load.num_tokens))
        await server.while_alive(run_block(server.address, warm_up, f"{label}-warm-up"))
        cpu_before = server.cpu_seconds()
        block = await server.while_alive(run_block(server.address, self._load, label))
        cpu_seconds = server.cpu_seconds() - cpu_before
        for measure, value in (
            (Measure.THROUGHPUT, block.tokens_per_second),
            (Measure.TTFT_P50, block.ttft_p50_seconds),
            (Measure.ITL_P50, block.itl_p50_seconds),
            (Measure.ITL_P99, block.itl_p99_seconds),
            (Measure.SERVER_CPU, cpu_seconds / block.num_tokens),
        ):
            self.samples.add(measure, server.side, value)
        progress.print(f"  {server.side}: {block.tokens_per_second:.0f} tokens/s")

    async def _stop(self, side: Side) -> None:
        server = self._servers[side]
        server_bytes, tree_bytes = server.peak_memory()
        self.samples.add(Measure.SERVER_MEMORY, side, server_bytes)
        self.samples.add(Measure.TREE_MEMORY, side, tree_bytes)
        await server.stop()
        del self._servers[side]


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. `limit_seconds` ends the measurement, whatever is done by then."""

    model: str
    num_runs: int
    load: Load
    json_path: Path | None
    limit_seconds: float


async def measure(options: Options, subject: Subject, *, folder: Path, deadline: float) -> list[Samples]:
    """Samples of every run that was complete before the deadline (a `time.monotonic()`); later runs are left out.

    Raises:
        ServerFailed: a server failed.
    """
    runs: list[Samples] = []
    longest = 0.0
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            await _warm_up(options, subject, folder)
            while len(runs) < options.num_runs and time.monotonic() + longest < deadline:
                began = time.monotonic()
                runs.append(await _one_run(len(runs), options, subject, folder))
                longest = max(longest, time.monotonic() - began)
    except TimeoutError:
        pass
    if len(runs) < options.num_runs:
        progress.print(f"{len(runs)} of {options.num_runs} runs fit into {options.limit_seconds:.0f} s")
    return runs


async def _warm_up(options: Options, subject: Subject, folder: Path) -> None:
    progress.print("one start that does not count")
    async with Run(subject, options.load, folder=folder, label="uncounted") as run:
        await run.start(Side.VLLM)


async def _one_run(number: int, options: Options, subject: Subject, folder: Path) -> Samples:
    progress.print(f"run {number + 1} of {options.num_runs}")
    async with Run(subject, options.load, folder=folder, label=str(number)) as run:
        await run.carry_out(run_plan(number, NUM_BLOCKS, together=subject.on_cpu))
    return run.samples


async def compare_servers(options: Options) -> int:
    """The whole comparison; prints the table, writes the file.

    Raises:
        HeadraceError: the model cannot be prepared.
        ServerFailed: a server failed.
    """
    began, deadline = datetime.now(UTC), time.monotonic() + options.limit_seconds
    machine = bench_report.machine()
    _warn_if_busy()
    subject = await prepare_subject(options.model)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        runs = await measure(options, subject, folder=Path(folder), deadline=deadline)
    if not runs:
        progress.print("nothing measured: no run was complete in time; --limit-seconds gives more")
        return 1
    samples = Samples()
    for run in runs:
        samples.extend(run)
    setup = _setup(options, subject)
    Console().print(bench_report.table(samples, setup))
    content = bench_report.document(samples, setup, began=began, measured_on=machine, num_complete_runs=len(runs))
    progress.print(f"written to {bench_report.save(content, options.json_path)}")
    return 0


def _warn_if_busy() -> None:
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > cores / 2:
        progress.print(f"[yellow]this machine is busy (load {load:.1f} on {cores} cores): expect noise[/]")


def _setup(options: Options, subject: Subject) -> Setup:
    return Setup(
        model=Path(options.model).resolve().name if Path(options.model).is_dir() else options.model,
        num_streams=options.load.num_streams,
        num_tokens=options.load.num_tokens,
        num_runs=options.num_runs,
        num_blocks_per_run=NUM_BLOCKS,
        both_sides_up=subject.on_cpu,
        engine_arguments=without_paths(subject.engine_line),
    )


def without_paths(line: Iterable[str]) -> tuple[str, ...]:
    """A command line in which paths have become their last parts."""
    return tuple(Path(word).name if word.startswith("/") else word for word in line)


async def unless_interrupted(work: Coroutine[Any, Any, int]) -> int:
    """Do `work`; SIGINT, SIGTERM and SIGHUP cancel it once, so that ending the servers is not cut short."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt() -> None:
        for number in numbers:
            loop.add_signal_handler(number, progress.print, "ending the servers")
        task.cancel()

    for number in numbers:
        loop.add_signal_handler(number, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        progress.print("interrupted")
        return 130


def parse_options(arguments: list[str]) -> Options:
    """Read the command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="DIR|REF", help="default: %(default)s")
    parser.add_argument("--runs", type=_positive, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--streams", type=_positive, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--tokens", type=_several, default=128, metavar="N", help="a stream; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: a new file in loadtests/results")
    parser.add_argument("--limit-seconds", type=_positive, metavar="N", help="default: 150 for each run")
    read = parser.parse_args(arguments)
    limit_seconds = read.limit_seconds or LIMIT_SECONDS_PER_RUN * read.runs
    return Options(read.model, read.runs, Load(read.streams, read.tokens), read.json, limit_seconds)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _several(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError("must be at least 2: the gaps between tokens are measured")
    return number


def main() -> int:
    options = parse_options(sys.argv[1:])
    if not PROC.is_dir():
        progress.print("this needs Linux: it reads /proc")
        return 2
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(unless_interrupted(compare_servers(options)))
    except (HeadraceError, ServerFailed) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
