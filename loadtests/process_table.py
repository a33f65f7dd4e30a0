"""Which processes there are, by reading /proc (Linux). Nothing is kept between calls."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

ProcessId = NewType("ProcessId", int)

PROC = Path("/proc")


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


def living_processes() -> dict[ProcessId, ProcessEntry]:
    """All processes of this machine except those that have ended and wait for their parent to notice."""
    return {entry.pid: entry for entry in _entries() if entry.state not in ("Z", "X")}


def _entries() -> Iterator[ProcessEntry]:
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it ended while we looked
                yield parse_stat((folder / "stat").read_text(encoding="utf-8", errors="replace"))


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


def peak_resident_bytes(pid: ProcessId) -> int:
    """VmHWM, the most memory that the process ever had resident; 0 once it has ended."""
    with suppress(OSError):
        for line in (PROC / str(pid) / "status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
