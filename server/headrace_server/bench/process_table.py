"""Which processes there are, and what they use, by reading /proc (Linux). Nothing is kept.

Processor time comes from the kernel's clock of the process (clock_getcpuclockid(3)): nanoseconds of all its threads,
those that have ended included, which the sum over /proc/PID/task/*/schedstat leaves out. Where a kernel has no such
clock, /proc/PID/stat's clock ticks serve (10 ms each).
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NewType

ProcessId = NewType("ProcessId", int)

PROC = Path("/proc")


class CpuSource(StrEnum):
    """Where processor time was read."""

    CLOCK = "process clock"
    TICKS = "clock ticks"


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """One line of the process table. `started` (clock ticks after boot) tells it from a later one of the same id."""

    pid: ProcessId
    parent: ProcessId
    group: int
    state: str
    cpu_ticks: int
    started: int

    @property
    def is_stopped(self) -> bool:
        """By SIGSTOP or a tracer."""
        return self.state in ("T", "t")


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes: the most there ever were (VmHWM), those now (VmRSS), and of these what is no file's (RssAnon)."""

    peak_bytes: int = 0
    resident_bytes: int = 0
    anonymous_bytes: int = 0


def living_processes() -> dict[ProcessId, ProcessEntry]:
    """All processes of this machine except those that have ended and wait for their parent to notice."""
    return {entry.pid: entry for entry in _entries() if entry.state not in ("Z", "X")}


def _entries() -> Iterator[ProcessEntry]:
    for folder in process_folders():
        with suppress(OSError):  # it ended while we looked
            yield parse_stat((folder / "stat").read_text(encoding="utf-8", errors="replace"))


def process_folders() -> Iterator[Path]:
    """One folder of /proc for each process; none where there is no /proc."""
    with suppress(FileNotFoundError):
        yield from (folder for folder in PROC.iterdir() if folder.name.isdigit())


def parse_stat(text: str) -> ProcessEntry:
    """One /proc/PID/stat, see proc_pid_stat(5). The second field, a name in parentheses, may hold anything."""
    before, _, after = text.rpartition(")")
    fields = after.split()
    return ProcessEntry(
        pid=ProcessId(int(before.split(" ", 1)[0])),
        parent=ProcessId(int(fields[1])),
        group=int(fields[2]),
        state=fields[0],
        cpu_ticks=int(fields[11]) + int(fields[12]),
        started=int(fields[19]),
    )


def descendants(root: ProcessId, table: Mapping[ProcessId, ProcessEntry]) -> set[ProcessId]:
    """`root` and all that it started, directly or not, as far as they are in the table."""
    found = {root} & table.keys()
    while more := {pid for pid, entry in table.items() if entry.parent in found} - found:
        found |= more
    return found


def ancestors(pid: ProcessId, table: Mapping[ProcessId, ProcessEntry]) -> set[ProcessId]:
    """`pid`, what started it, and so on, as far as they are in the table."""
    found: set[ProcessId] = set()
    while pid in table and pid not in found:
        found.add(pid)
        pid = table[pid].parent
    return found


def cpu_seconds(entry: ProcessEntry) -> tuple[float, CpuSource]:
    """Processor time of all threads that the process has or had."""
    try:
        return time.clock_gettime(_cpu_clock(entry.pid)), CpuSource.CLOCK
    except OSError:  # no such clock, or it has just ended
        return entry.cpu_ticks / os.sysconf("SC_CLK_TCK"), CpuSource.TICKS


def _cpu_clock(pid: ProcessId) -> int:
    """The id of a process's clock, as Linux's posix-timers.h (MAKE_PROCESS_CPUCLOCK, CPUCLOCK_SCHED) makes it."""
    return (~pid << 3) | 2


def memory_of(pid: ProcessId) -> Memory:
    """What a process has resident; nothing once it has ended."""
    try:
        return parse_memory((PROC / str(pid) / "status").read_text(encoding="utf-8"))
    except OSError:
        return Memory()


def parse_memory(status: str) -> Memory:
    """Three lines of a /proc/PID/status; a kernel thread has none of them."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    kib = (int(fields[name].split()[0]) if name in fields else 0 for name in ("VmHWM", "VmRSS", "RssAnon"))
    return Memory(*(1024 * number for number in kib))
