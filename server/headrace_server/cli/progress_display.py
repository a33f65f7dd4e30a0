"""How a long job gets on, on standard error: a bar on a terminal, elsewhere a line every few seconds."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

LINE_SECONDS = 3.0


class ProgressDisplay(AbstractContextManager["ProgressDisplay"], Protocol):
    """One job's display, from entering to leaving it."""

    def show(self, done_bytes: int, total_bytes: int, *, rate: float = 0.0, eta_seconds: float | None = None) -> None:
        """So far it is; `rate` in bytes per second, 0: unknown."""

    def note(self, line: str) -> None:
        """A line that stays."""


def open_display(label: str) -> ProgressDisplay:
    """The display that fits standard error."""
    return BarDisplay(label) if sys.stderr.isatty() else LineDisplay(label)


class BarDisplay:
    """A bar that is drawn again with each `show`, and gone at the end."""

    def __init__(self, label: str, console: Console | None = None) -> None:
        self._label = label
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console or Console(stderr=True),
            transient=True,
            auto_refresh=False,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        self._task = self._progress.add_task(self._label, total=None, figures="")
        self._progress.refresh()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, done_bytes: int, total_bytes: int, *, rate: float = 0.0, eta_seconds: float | None = None) -> None:
        if self._task is not None:
            shown = figures(done_bytes, total_bytes, rate=rate, eta_seconds=eta_seconds)
            self._progress.update(self._task, completed=done_bytes, total=max(total_bytes, 1), figures=shown)
            self._progress.refresh()

    def note(self, line: str) -> None:
        self._progress.console.print(f"{self._label}: {line}", markup=False, highlight=False)


class LineDisplay:
    """Lines for a log."""

    def __init__(
        self,
        label: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        echo: Callable[[str], None] = lambda line: typer.echo(line, err=True),
    ) -> None:
        self._label = label
        self._clock = clock
        self._echo = echo
        self._due = 0.0

    def __enter__(self) -> Self:
        self._due = self._clock() + LINE_SECONDS
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        return

    def show(self, done_bytes: int, total_bytes: int, *, rate: float = 0.0, eta_seconds: float | None = None) -> None:
        if self._clock() >= self._due:
            self._due = self._clock() + LINE_SECONDS
            self.note(figures(done_bytes, total_bytes, rate=rate, eta_seconds=eta_seconds))

    def note(self, line: str) -> None:
        self._echo(f"{self._label}: {line}")


def figures(done_bytes: int, total_bytes: int, *, rate: float = 0.0, eta_seconds: float | None = None) -> str:
    """`42 %, 113.3 MB of 269.1 MB, 12.0 MB/s, 13 s left`, as far as it is known."""
    parts = [f"{percent(done_bytes, total_bytes)} %", f"{size_text(done_bytes)} of {size_text(total_bytes)}"]
    if rate > 0:
        parts.append(f"{size_text(round(rate))}/s")
    if eta_seconds is not None:
        parts.append(f"{duration_text(eta_seconds)} left")
    return ", ".join(parts)


def percent(done_bytes: int, total_bytes: int) -> int:
    """How much of it, rounded down: 100 only when nothing is missing."""
    return 100 * done_bytes // total_bytes if total_bytes else 100


def size_text(num_bytes: int) -> str:
    """Bytes in decimal units, as disks and networks are sold: `272.6 MB`."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    size, units = num_bytes / 1000, iter(("kB", "MB", "GB"))
    unit = next(units)
    while size >= 999.95 and unit != "TB":
        size, unit = size / 1000, next(units, "TB")
    return f"{size:.1f} {unit}"


def duration_text(seconds: float) -> str:
    """`0.4 s`, `13 s`, `2 min 5 s`, `3 h 20 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
