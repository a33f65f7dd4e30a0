"""Who waits how long where several tenants want more than there is: the request batcher, against targets.

    python loadtests/bench_fair.py [--virtual] [--rows NAME,...] [--short] [--runs N] [--limits N,...] [--no-peers]

The virtual rows are exact: the real server's parts on a virtual clock, with an engine that takes the time that a model
of one says, beside the same server without the batcher. The row `real` is on vLLM, beside vLLM's own server. A run that
was not interrupted is written to the results folder.

Exit codes: 0 measured (whether targets are met stands in the table), 1 a row failed, 2 usage, 130 interrupted.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console

if not __package__:  # run as a script: find the package, not its modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from headrace_server.bench import document
from headrace_server.bench.machine import commit, is_busy, machine
from headrace_server.errors import HeadraceError, UsageError
from loadtests.command_line import add_rows, measuring, positive, run_measurement
from loadtests.fair.findings import Findings
from loadtests.fair.picture import can_draw, draw
from loadtests.fair.real import RealOptions, measure_real
from loadtests.fair.replay import TRACE, measure_trace
from loadtests.fair.report import REPORT
from loadtests.fair.rows import VIRTUAL, RowName
from loadtests.fair.scale import FULL, SHORT, Scale

RESULTS = Path(__file__).resolve().with_name("results")


progress = Console(stderr=True, highlight=False, markup=False)
_tell = partial(progress.print, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    rows: tuple[RowName, ...]
    folder: Path
    scale: Scale = FULL
    trace: Path = TRACE
    real: RealOptions = field(default_factory=RealOptions)


@dataclass(slots=True)
class Results:
    """What has been measured so far."""

    began: datetime
    measured_on: dict[str, object]
    found: dict[str, Findings] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure_virtually(options: Options, results: Results) -> None:
    """All virtual rows; a row that fails is told in `failed`, and the next one goes on."""
    for row in options.rows:
        if row is RowName.REAL:
            continue
        with measuring(row, results.failed, _tell, AssertionError, ValueError):
            results.found[row] = _measured(row, options)


def _measured(row: RowName, options: Options) -> Findings:
    if row is RowName.TRACE:
        return measure_trace(options.scale, options.trace)
    return VIRTUAL[row](options.scale)


async def measure_and_report(options: Options, results: Results) -> None:
    """The row on vLLM, and then everything. Raises HeadraceError where a row failed."""
    try:
        await _measure_real(options, results)
    except BaseException:
        REPORT.show(results.found)
        raise
    write(options, results)


async def _measure_real(options: Options, results: Results) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-", ignore_cleanup_errors=True) as scratch,
        measuring(RowName.REAL, results.failed, _tell),
    ):
        results.found[RowName.REAL] = await measure_real(options.real, Path(scratch), progress.print)


def write(options: Options, results: Results) -> None:
    """Print the table, write the file and the picture.

    Raises:
        HeadraceError: a row failed; the others are written all the same.
    """
    REPORT.show(results.found)
    path = REPORT.path_in(options.folder)
    asked = {"failed": results.failed, "limits": list(options.real.limits), "num_runs": options.real.num_runs}
    content = REPORT.content(results.found, asked, began=results.began, measured_on=results.measured_on)
    document.save(content, path)
    if (real := results.found.get(RowName.REAL)) is not None and can_draw(real):
        draw(real, options.real.times, path.with_suffix(".png"))
    _tell(f"written to {path}")
    if results.failed:
        raise HeadraceError(f"not measured: {', '.join(results.failed)}")


def parse_options(arguments: list[str]) -> Options:
    """Read the command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_rows(parser, RowName)
    parser.add_argument("--virtual", action="store_true", help="leave the row on vLLM out")
    parser.add_argument("--short", action="store_true", help="a short look: a third of the virtual time")
    parser.add_argument("--trace", type=Path, default=TRACE, metavar="FILE", help="arrivals; see loadtests/README.md")
    parser.add_argument("--runs", type=positive, default=2, metavar="N", help="of each side on vLLM; default: 2")
    parser.add_argument(
        "--limits", type=_limits, default=(8, 32, 16), metavar="N,...", help="--max-num-queued-reqs to try for vLLM"
    )
    parser.add_argument("--no-peers", action="store_true", help="on vLLM, measure Headrace alone")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="for the files")
    read = parser.parse_args(arguments)
    rows = tuple(row for row in read.rows if not (read.virtual and row is RowName.REAL))
    real = RealOptions(read.runs, () if read.no_peers else read.limits)
    return Options(rows, read.results, SHORT if read.short else FULL, read.trace, real)


def _limits(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def main() -> int:
    options = parse_options(sys.argv[1:])
    if not options.folder.is_dir():
        print(f"--results: no such folder: {options.folder}", file=sys.stderr)
        return 2
    results = Results(datetime.now(UTC), machine())
    if RowName.REAL in options.rows and is_busy():
        progress.print("this machine is busy: expect noise in the row on vLLM")
    if (commit() or "").endswith("-dirty"):
        progress.print("files differ from the commit: the result says so")
    try:
        measure_virtually(options, results)
        if RowName.REAL not in options.rows:
            write(options, results)
            return 0
    except KeyboardInterrupt:
        REPORT.show(results.found)
        return 130
    except HeadraceError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    work = partial(measure_and_report, options, results)
    return run_measurement(work, results=options.folder, prepare=lambda _stack: None)


if __name__ == "__main__":
    raise SystemExit(main())
