"""What the measuring programmes have in common: positive numbers, and how a run begins and ends."""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

import uvloop

from headrace_models.errors import ModelError
from headrace_server.bench.interrupts import unless_interrupted
from headrace_server.bench.priority import priority
from headrace_server.bench.process_table import PROC
from headrace_server.errors import HeadraceError, UsageError
from loadtests.cache_findings import first_line

R = TypeVar("R", bound=StrEnum)


def positive(text: str) -> int:
    """An argument's number, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def add_rows(parser: argparse.ArgumentParser, rows: type[StrEnum]) -> None:
    """`--rows NAME,...`: those that are named, in their own order."""

    def read(text: str) -> tuple[StrEnum, ...]:
        names = {name.strip() for name in text.split(",")}
        if unknown := names - set(rows):
            raise argparse.ArgumentTypeError(f"no such row: {', '.join(sorted(unknown))} (there are {', '.join(rows)})")
        return tuple(row for row in rows if row in names)

    parser.add_argument("--rows", type=read, default=tuple(rows), metavar="NAME,...", help="default: all of them")


@dataclass(frozen=True, slots=True)
class RowOptions(Generic[R]):
    """A command line of rows that take turns between sides."""

    rows: tuple[R, ...]
    folder: Path
    num_runs: int = 3
    with_peers: bool = True


def parse_row_options(doc: str | None, rows: type[R], results: Path, arguments: list[str]) -> RowOptions[R]:
    """Read the command line; exits with 2 where it is wrong. `doc`: of the command's module."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)
    add_rows(parser, rows)
    parser.add_argument("--runs", type=positive, default=3, metavar="N", help="of each side; default: 3")
    parser.add_argument("--no-peers", action="store_true", help="measure Headrace alone")
    parser.add_argument("--results", type=Path, default=results, metavar="FOLDER", help="for the files")
    read = parser.parse_args(arguments)
    return RowOptions(read.rows, read.results, read.runs, with_peers=not read.no_peers)


@contextmanager
def measuring(
    row: str, failed: dict[str, str], tell: Callable[[str], object], *failures: type[Exception]
) -> Iterator[None]:
    """Tell that a row is measured, and how long that took. One that ends in one of the `failures`, or in a failure of
    ours, is told in `failed`, and ends no other."""
    expected: tuple[type[Exception], ...] = (HeadraceError, ModelError, TimeoutError, *failures)
    tell(f"{row}:")
    began = time.monotonic()
    try:
        yield
    except expected as error:
        failed[row] = first_line(error)
        tell(f"  failed: {error}")
    tell(f"  {time.monotonic() - began:.0f} s")


def run_measurement(
    work: Callable[[], Coroutine[Any, Any, None]], *, results: Path, prepare: Callable[[ExitStack], object]
) -> int:
    """Do `work` ahead of all ordinary processes. The exit code: 0 done, 1 a server failed, 2 usage, 130 interrupted.

    `prepare` makes sure of what the work needs beside Linux and the folder for its results; what it enters lasts as
    long as the work.
    """
    try:
        _check_surroundings(results)
        with ExitStack() as stack:
            prepare(stack)
            stack.enter_context(priority())
            runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
            return 0 if runner.run(unless_interrupted(work())) else 130
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except HeadraceError as error:
        print(error, file=sys.stderr)
        return 1


def _check_surroundings(results: Path) -> None:
    if not PROC.is_dir():
        raise UsageError("this needs Linux: it reads /proc")
    if not results.is_dir():
        raise UsageError(f"--results: no such folder: {results}")
