"""What the measuring programmes have in common: positive numbers, and how a run begins and ends."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Any

import uvloop

from headrace_server.bench.interrupts import unless_interrupted
from headrace_server.bench.priority import priority
from headrace_server.bench.process_table import PROC
from headrace_server.errors import HeadraceError, UsageError


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
