"""What a running server withstands: a crowd, a client that never reads, and tens of thousands of requests.

    python loadtests/bench_limits.py [--part crowd|stalled|soak]... [--blocks N] [--requests N] [--results FOLDER]

Each part has a `headrace serve` of its own, with the synthetic engine at the pace of a real one; everything is on
loopback. It is bounded in count and time, and everything it starts is ended in every case, also by Ctrl-C. A run that
was not interrupted is written to the results folder as JSON.

Exit codes: 0 measured (whether targets are met stands in the tables), 1 a server failed, 2 usage, 130 interrupted.
"""

import argparse
import asyncio
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import assert_never

from rich.console import Console

if not __package__:  # run as a script: find the package, not its modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from headrace_server.bench import document
from headrace_server.bench.machine import is_busy, machine
from headrace_server.bench.report import open_console
from headrace_server.errors import HeadraceError
from loadtests import limits_report
from loadtests.command_line import positive, run_measurement
from loadtests.crowd import Size, measure_crowd
from loadtests.limits_report import STALLED_CLIENT_SECONDS, Limits
from loadtests.limits_server import enough_open_files, serving
from loadtests.soak import soak
from loadtests.stalled_client import FLOOD_MODEL, measure_stalled_client

RESULTS = Path(__file__).resolve().with_name("results")
MOST_SECONDS = 600.0

_ITL_MS = 10.0
_SOAK_ITL_MS = 3.0
_SOAK_STREAMS = 32
# 1.3 s each; a client that does not read is there for 3 to 4 s of them.
_STALLED_ROUNDS = 6
_SPARE_FILES = 300

progress = Console(stderr=True, highlight=False, markup=False)


class Part(StrEnum):
    """What is measured, in this order."""

    CROWD = "crowd"
    STALLED = "stalled"
    SOAK = "soak"


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. `num_blocks` are of each side, `num_warm_up` requests before the soak's `num_requests`."""

    parts: tuple[Part, ...]
    folder: Path
    size: Size = Size()
    num_blocks: int = 8
    num_requests: int = 20_000
    num_warm_up: int = 2_000

    @property
    def num_open_files(self) -> int:
        """What the server, and the crowd, may have open."""
        return self.size.num_idle + self.size.num_slow + _SPARE_FILES

    def as_document(self) -> dict[str, object]:
        """What was asked for, without the folder."""
        return {
            "parts": [str(part) for part in self.parts],
            "crowd": asdict(self.size),
            "num_blocks": self.num_blocks,
            "num_requests": self.num_requests,
            "num_warm_up": self.num_warm_up,
            "num_soak_streams": _SOAK_STREAMS,
            "itl_ms": _ITL_MS,
            "soak_itl_ms": _SOAK_ITL_MS,
        }


async def measure(options: Options, limits: Limits) -> None:
    """All parts, into `limits`.

    Raises:
        HeadraceError: a server failed, or it took ten minutes.
    """
    try:
        async with asyncio.timeout(MOST_SECONDS):
            with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
                for part in options.parts:
                    progress.print(f"{part}:")
                    await _measure_part(part, options, limits, Path(scratch))
    except TimeoutError as error:
        raise HeadraceError(f"not done after {MOST_SECONDS:g} s") from error


async def _measure_part(part: Part, options: Options, limits: Limits, folder: Path) -> None:
    match part:
        case Part.CROWD:
            async with serving(folder, itl_ms=_ITL_MS) as server:
                limits.crowd = await measure_crowd(
                    server, options.size, num_blocks=options.num_blocks, itl_ms=_ITL_MS, tell=progress.print
                )
        case Part.STALLED:
            setting = {"stalled_client_seconds": STALLED_CLIENT_SECONDS}
            async with serving(folder, itl_ms=_ITL_MS, other_models={FLOOD_MODEL: 0.0}, **setting) as server:
                limits.stalled = await measure_stalled_client(
                    server, num_rounds=_STALLED_ROUNDS, most_seconds=5 * STALLED_CLIENT_SECONDS
                )
        case Part.SOAK:
            async with serving(folder, itl_ms=_SOAK_ITL_MS) as server:
                limits.soak = await soak(
                    server,
                    num_requests=options.num_requests,
                    num_warm_up=options.num_warm_up,
                    num_streams=_SOAK_STREAMS,
                    tell=progress.print,
                )
        case _:
            assert_never(part)


async def measure_and_report(options: Options) -> None:
    """The whole run: prints the tables, and writes the file unless it ends early.

    Raises:
        HeadraceError: see `measure`.
    """
    began, measured_on, limits = datetime.now(UTC), machine(), Limits()
    if is_busy():
        progress.print(f"this machine is busy (load {measured_on['load_average_1min']}): expect noise")
    try:
        await measure(options, limits)
    finally:
        _show(limits)
    path = limits_report.path_in(options.folder)
    content = limits_report.content(limits, options.as_document(), began=began, measured_on=measured_on)
    document.save(content, path)
    progress.print(f"written to {path}", soft_wrap=True)


def _show(limits: Limits) -> None:
    console = open_console()
    for table in limits_report.tables(limits):
        console.print(table)
    for remark in limits_report.remarks(limits):
        console.print(remark, soft_wrap=True, markup=False)


def parse_options(arguments: list[str]) -> Options:
    """Read the command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--part", type=Part, action="append", choices=list(Part), help="default: all of them")
    parser.add_argument("--blocks", type=positive, default=8, metavar="N", help="alone and in a crowd; default: 8")
    parser.add_argument("--requests", type=positive, default=20_000, metavar="N", help="of the soak; default: 20000")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="for the file")
    read = parser.parse_args(arguments)
    parts = tuple(part for part in Part if part in (read.part or Part))
    return Options(parts, read.results, num_blocks=read.blocks, num_requests=read.requests)


def main() -> int:
    options = parse_options(sys.argv[1:])
    return run_measurement(
        lambda: measure_and_report(options),
        results=options.folder,
        prepare=lambda stack: stack.enter_context(enough_open_files(options.num_open_files)),
    )


if __name__ == "__main__":
    raise SystemExit(main())
