"""Headrace beside vLLM's own server and vLLM's engine alone: same models, same arguments, same requests, in turns.

    python loadtests/bench_server.py [--subject smollm2|one-layer]... [--blocks N] [--runs N] [--results FOLDER]

All sides of a subject are started, and then blocks of requests alternate, A B C, C B A. Whichever side has no turn is
stopped with all of its processes, so that it takes no processor time from the others. On GPUs, where two engines do not
fit side by side, each side has all of its blocks before the next one starts. Everything is ended in every case, also by
Ctrl-C. A comparison that was not interrupted is written to the results folder, as JSON and as a picture.

Exit codes: 0 measured (whether targets are met stands in the table), 1 a server failed, 2 usage, 130 interrupted.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

if not __package__:  # run as a script: find the package, not its modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from headrace_server.bench import document, measures
from headrace_server.bench.arrivals import Load
from headrace_server.bench.machine import is_busy, machine
from headrace_server.bench.measures import Measure
from headrace_server.bench.picture import check_can_draw
from headrace_server.bench.record import Measurement, Record
from headrace_server.bench.report import open_console
from headrace_server.bench.side import Side
from headrace_server.bench.summary import BlockResult
from headrace_server.bench.turns import Turns
from loadtests import bench_report
from loadtests.bench_report import Results
from loadtests.command_line import positive, run_measurement
from loadtests.launcher import SideName, Subject
from loadtests.programmes import Programme, SubjectName, prepare, programme_of
from loadtests.sides import launch_and_start

progress = Console(stderr=True, highlight=False, markup=False)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    subjects: tuple[SubjectName, ...]
    num_blocks: int | None
    num_runs: int | None
    folder: Path


def sides_up_together(programme: Programme, run: int, *, on_cpu: bool) -> list[tuple[SideName, ...]]:
    """Which sides run at the same time, in the order of their starts; odd runs begin with the last side."""
    order = programme.sides if run % 2 == 0 else programme.sides[::-1]
    return [order] if on_cpu else [(side,) for side in order]


class Run:
    """Measures one subject into `results`, run after run."""

    def __init__(self, programme: Programme, subject: Subject, folder: Path) -> None:
        self.results = Results(programme)
        self._programme = programme
        self._subject = subject
        self._folder = folder

    async def all_runs(self) -> None:
        """One start that does not count, so that no side reads its libraries from disk, and then every run.

        Raises:
            ServerFailed: a side failed.
        """
        progress.print("one start that does not count")
        program, _ = await launch_and_start(SideName.VLLM, self._subject, self._folder, lambda *_: None)
        await program.stop()
        for run in range(self._programme.num_runs):
            progress.print(f"{self._programme.title}, run {run + 1} of {self._programme.num_runs}")
            for names in sides_up_together(self._programme, run, on_cpu=self._subject.on_cpu):
                await self._with_sides(names, run)

    async def _with_sides(self, names: Sequence[SideName], run: int) -> None:
        async with AsyncExitStack() as stack:
            turns = stack.enter_context(Turns())
            sides = [await self._start(name, turns, stack) for name in names]
            for label, load in self._programme.loads.items():
                await self._blocks(sides, label, load, run, turns)

    async def _start(self, name: SideName, turns: Turns, stack: AsyncExitStack) -> Side:
        """Start a side while all others rest; it is ended when the stack is left."""
        await turns.give(name)

        def note(measure: Measure, seconds: float) -> None:
            self.results.starts.add(measure, name, seconds)
            progress.print(f"  {name}: {measure.title} after {seconds:.1f} s")

        program, side = await launch_and_start(name, self._subject, self._folder, note)
        stack.push_async_callback(program.stop)
        stack.callback(turns.remove, name)
        turns.add(name, program.processes)
        return side

    async def _blocks(self, sides: Sequence[Side], label: str, load: Load, run: int, turns: Turns) -> None:
        num_blocks = self._programme.num_blocks

        def report(side: str, number: int, result: BlockResult) -> None:
            rate = result.figures.get(measures.THROUGHPUT)
            figure = f"{rate:,.0f} tokens/s" if rate else f"{result.figures[measures.LATENCY_P50] * 1e3:.2f} ms"
            progress.print(f"  {label}, block {number + 1} of {num_blocks}, {side}: {figure}")

        record = self.results.records.setdefault(label, Record())
        await Measurement(sides, load, num_blocks, report, first_block=run * num_blocks).run(turns, record)


async def compare(name: SubjectName, options: Options) -> None:
    """One whole comparison; prints the table, and writes the files unless it ends early.

    Raises:
        HeadraceError: the model cannot be prepared, or a side failed.
    """
    began, measured_on = datetime.now(UTC), machine()
    if is_busy():
        progress.print(f"this machine is busy (load {measured_on['load_average_1min']}): expect noise")
    programme = programme_of(name, num_blocks=options.num_blocks, num_runs=options.num_runs)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        subject = await prepare(name, Path(scratch))
        run = Run(programme, subject, Path(scratch))
        try:
            await run.all_runs()
        finally:
            _show(run.results)
    json_path, picture_path = bench_report.paths(run.results, options.folder)
    document.save(bench_report.content(run.results, subject, began=began, measured_on=measured_on), json_path)
    bench_report.picture(run.results, picture_path)
    progress.print(f"written to {json_path} and {picture_path.name}", soft_wrap=True)


def _show(results: Results) -> None:
    console = open_console()
    if results.records:
        console.print(bench_report.table(results))
    for remark in bench_report.remarks(results):
        console.print(remark, soft_wrap=True, markup=False)


async def compare_all(options: Options) -> None:
    """Every subject, one after the other."""
    for name in options.subjects:
        await compare(name, options)


def parse_options(arguments: list[str]) -> Options:
    """Read the command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--subject", type=SubjectName, action="append", choices=list(SubjectName), help="default: all of them"
    )
    parser.add_argument("--blocks", type=positive, metavar="N", help="of each load in a run; default: 4 and 6")
    parser.add_argument("--runs", type=positive, metavar="N", help="starts of all sides; default: 3 and 1")
    parser.add_argument("--results", type=Path, default=bench_report.RESULTS, metavar="FOLDER", help="for the files")
    read = parser.parse_args(arguments)
    return Options(tuple(read.subject or SubjectName), read.blocks, read.runs, read.results)


def main() -> int:
    options = parse_options(sys.argv[1:])
    return run_measurement(
        lambda: compare_all(options),
        results=options.folder,
        prepare=lambda _stack: check_can_draw(options.folder / "a.png"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
