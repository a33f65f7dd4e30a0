"""`headrace bench`: one server measured alone, or two in turns.

Everything that can be wrong is checked before the first block. Whatever ends the measurement early, a server that dies
or Ctrl-C, what was measured so far is reported. Exit codes: 0 measured, 1 a server failed or left requests unanswered,
2 usage, 130 interrupted.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from rich.console import Console

from headrace_server.bench import document, measures, report
from headrace_server.bench.arrivals import Load
from headrace_server.bench.endpoint import Endpoint, parse_target
from headrace_server.bench.findings import Findings, Setting
from headrace_server.bench.interrupts import unless_interrupted
from headrace_server.bench.listening import find_server
from headrace_server.bench.machine import is_busy, machine
from headrace_server.bench.picture import check_can_draw
from headrace_server.bench.priority import priority
from headrace_server.bench.processes import ServerProcesses
from headrace_server.bench.record import Measurement, Record
from headrace_server.bench.side import Asking, HttpSide, SideFailed, open_side
from headrace_server.bench.summary import BlockResult, Slo
from headrace_server.bench.turns import Turns, reason_not_to_pause
from headrace_server.errors import UsageError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The command line. `targets` are one or two `[NAME=]URL`."""

    targets: tuple[str, ...]
    asking: Asking
    load: Load
    num_blocks: int
    slo: Slo
    pause: bool = True
    json_path: Path | None = None
    picture_path: Path | None = None


def run_bench(options: BenchOptions) -> int:
    """Measure and report. Returns the exit code.

    Raises:
        UsageError: something is wrong before the first block.
    """
    targets = read_targets(options.targets)
    if options.json_path is not None:
        document.check_can_be_written(options.json_path, "--json")
    if options.picture_path is not None:
        check_can_draw(options.picture_path)
        document.check_can_be_written(options.picture_path, "--picture")
    with priority(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Bench(options, targets).run())


def read_targets(texts: Sequence[str]) -> dict[str, Endpoint]:
    """Endpoints by name, ours first.

    Raises:
        UsageError: not a URL, or one name for both.
    """
    named = [parse_target(text, default) for text, default in zip(texts, ("server", "baseline"), strict=False)]
    if len({name for name, _ in named}) < len(named):
        raise UsageError("both servers have the same name")
    return dict(named)


class _Bench:
    """One run of the command; its attributes are what is known so far."""

    def __init__(self, options: BenchOptions, targets: Mapping[str, Endpoint]) -> None:
        self._options = options
        self._targets = targets
        self._record = Record()
        self._remarks: list[str] = []
        self._setting = Setting(tuple(targets), options.asking, options.load, options.num_blocks, options.slo)
        self._progress = Console(stderr=True, highlight=False, markup=False)

    async def run(self) -> int:
        began, measured_on = datetime.now(UTC), machine()
        if is_busy():
            self._progress.print(f"this machine is busy (load {measured_on['load_average_1min']}): expect noise")
        ended_early, exit_code = await self._measure_to_some_end()
        findings = Findings(self._setting, self._record, began, measured_on, tuple(self._remarks), ended_early)
        self._report(findings)
        return exit_code

    async def _measure_to_some_end(self) -> tuple[str, int]:
        """Why that was not the wanted end, and the exit code."""
        try:
            if not await unless_interrupted(self._measure()):
                return "interrupted", EXIT_INTERRUPTED
        except SideFailed as error:
            return str(error), EXIT_FAILED
        unanswered = any(tally.num_failed for tally in self._record.tallies.values())
        return "", EXIT_FAILED if unanswered else 0

    async def _measure(self) -> None:
        sides = [await self._open(name, endpoint) for name, endpoint in self._targets.items()]
        self._setting = replace(
            self._setting,
            asking=replace(self._options.asking, model=sides[0].model),
            paused=len(sides) > 1 and self._may_pause(sides),
        )
        with Turns() as turns:
            for side in sides if self._setting.paused else ():
                if side.processes is not None:
                    turns.add(side.name, side.processes)
            await Measurement(sides, self._options.load, self._options.num_blocks, self._tell).run(turns, self._record)

    async def _open(self, name: str, endpoint: Endpoint) -> HttpSide:
        leader = find_server(endpoint.host, endpoint.port)
        processes = ServerProcesses(leader) if leader is not None else None
        if processes is None:
            self._remarks.append(f"{name}: no process of it was found on this machine, so no CPU and memory rows")
        else:
            self._setting = replace(self._setting, cpu_source=processes.cpu_seconds()[1].value)
        return await open_side(name, endpoint, self._options.asking, slo=self._options.slo, processes=processes)

    def _may_pause(self, sides: Sequence[HttpSide]) -> bool:
        """Whether they can take turns; remarks why not."""
        reason: str | None = "--no-pause"
        if self._options.pause:
            reason = reason_not_to_pause({side.name: side.processes for side in sides})
        if reason is not None:
            self._remarks.append(f"no side was stopped while it had no turn: {reason}")
        return reason is None

    def _tell(self, side: str, number: int, result: BlockResult) -> None:
        figures = result.figures
        shown = measures.THROUGHPUT if measures.THROUGHPUT in figures else measures.LATENCY_P50
        told = f"{shown.title} {shown.shown(figures[shown])} {shown.unit}"
        self._progress.print(f"block {number + 1} of {self._options.num_blocks}, {side}: {told}")

    def _report(self, findings: Findings) -> None:
        console = report.open_console()
        if self._record.tallies:
            console.print(findings.table())
        for note in findings.notes():
            console.print(note, soft_wrap=True, markup=False)
        if self._options.json_path is not None:
            document.save(findings.as_document(), self._options.json_path)
        if self._options.picture_path is not None and self._record.tallies:
            findings.draw(self._options.picture_path)
