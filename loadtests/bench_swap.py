"""What it costs to start, swap, lose and share engines, against targets and beside vLLM's own server.

    python loadtests/bench_swap.py [--rows NAME,...] [--runs N] [--no-peers] [--results FOLDER]

Rows follow one another; in each of them the sides take turns. It is bounded in time, every process that it starts ends
with it, and its files, the model cache included, lie in one temporary folder. A run that was not interrupted is written
to the results folder.

Exit codes: 0 measured (whether targets are met stands in the table), 1 a row failed, 2 usage, 130 interrupted.
"""

import asyncio
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeAlias

from rich.console import Console

if not __package__:  # run as a script: find the package, not its modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from headrace_server.bench import document
from headrace_server.bench.machine import commit, is_busy, machine
from headrace_server.errors import HeadraceError
from loadtests.bench_report import without_paths
from loadtests.command_line import RowOptions, measuring, parse_row_options, run_measurement
from loadtests.swap.findings import Findings
from loadtests.swap.report import REPORT
from loadtests.swap.rows import MEASUREMENTS, RowName
from loadtests.swap.setting import Setting
from loadtests.swap.subjects import MODELS, engine_lines

RESULTS = Path(__file__).resolve().with_name("results")

_MOST_ROW_SECONDS = 900.0

progress = Console(stderr=True, highlight=False, markup=False)
_tell = partial(progress.print, soft_wrap=True)


Options: TypeAlias = RowOptions[RowName]


@dataclass(slots=True)
class Results:
    """What has been measured so far."""

    found: dict[str, Findings]
    failed: dict[str, str]
    asked: dict[str, object]


async def measure(options: Options, results: Results) -> None:
    """All rows; a row that fails is told in `failed`, and the next one goes on. Raises HeadraceError."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-", ignore_cleanup_errors=True) as scratch:
        progress.print("preparing the models")
        cache = Path(scratch) / "cache"
        lines = await engine_lines(MODELS, cache)
        results.asked["engine_arguments"] = {model: without_paths(line) for model, line in lines.items()}
        setting = Setting(Path(scratch), cache, lines, options.num_runs, progress.print, options.with_peers)
        for row in options.rows:
            with measuring(row, results.failed, _tell):
                results.found[row] = await asyncio.wait_for(MEASUREMENTS[row](setting), _MOST_ROW_SECONDS)


async def measure_and_report(options: Options) -> None:
    """The whole run: prints the table, and writes the file unless it is interrupted.

    Raises:
        HeadraceError: a row failed; the others are written all the same.
    """
    began, measured_on = datetime.now(UTC), machine()
    results = Results({}, {}, {"num_runs": options.num_runs, "was_busy": is_busy()})
    if results.asked["was_busy"]:
        progress.print(f"this machine is busy (load {measured_on['load_average_1min']}): expect noise")
    if (commit() or "").endswith("-dirty"):
        progress.print("files differ from the commit: the result says so")
    try:
        await measure(options, results)
    finally:
        REPORT.show(results.found)
    path = REPORT.path_in(options.folder)
    asked = {**results.asked, "failed": results.failed}
    document.save(REPORT.content(results.found, asked, began=began, measured_on=measured_on), path)
    _tell(f"written to {path}")
    if results.failed:
        raise HeadraceError(f"not measured: {', '.join(results.failed)}")


def parse_options(arguments: list[str]) -> Options:
    """Read the command line; exits with 2 where it is wrong."""
    return parse_row_options(__doc__, RowName, RESULTS, arguments)


def main() -> int:
    options = parse_options(sys.argv[1:])
    return run_measurement(lambda: measure_and_report(options), results=options.folder, prepare=lambda _stack: None)


if __name__ == "__main__":
    raise SystemExit(main())
