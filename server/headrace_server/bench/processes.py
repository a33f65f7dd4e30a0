"""The processes of one server: what they use, and how they are stopped and continued together (Linux).

They are the server process, its descendants, its process group where it leads one, and whatever was seen as such
earlier. This program and those that started it are never among them: a script may have started both in one group.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress

from headrace_server.bench.process_table import (
    CpuSource,
    Memory,
    ProcessEntry,
    ProcessId,
    ancestors,
    cpu_seconds,
    descendants,
    living_processes,
    memory_of,
)
from headrace_server.errors import HeadraceError

_POLL_SECONDS = 0.005
_SIGNAL_SECONDS = 5.0


class NotObeyed(HeadraceError):
    """Processes are still there, or still run, seconds after the signal that should have ended that."""


class ServerProcesses:
    """The processes of the server whose first one is `leader`."""

    def __init__(self, leader: ProcessId) -> None:
        self.leader = leader
        found = living_processes().get(leader)
        self._started = found.started if found else None
        self._seen: dict[ProcessId, ProcessEntry] = {}

    def entries(self) -> list[ProcessEntry]:
        """Those that live."""
        table = living_processes()
        own_line = ancestors(ProcessId(os.getpid()), table)
        ours = {pid for pid, entry in table.items() if entry.group == self.leader} if self._leads(table) else set()
        ours |= descendants(self.leader, table) if self._is_in(table) else set()
        ours |= {pid for pid, old in self._seen.items() if pid in table and table[pid].started == old.started}
        self._seen = {pid: table[pid] for pid in ours - own_line}
        return list(self._seen.values())

    def _is_in(self, table: dict[ProcessId, ProcessEntry]) -> bool:
        return self.leader in table and table[self.leader].started == self._started

    def _leads(self, table: dict[ProcessId, ProcessEntry]) -> bool:
        """Whether the group with the leader's id is its own; the group may outlive it, and keeps the id taken."""
        return self._started is not None and (self.leader not in table or self._is_in(table))

    @property
    def is_alive(self) -> bool:
        """Whether the server process itself is."""
        return self._is_in(living_processes())

    @property
    def can_be_signalled(self) -> bool:
        """Whether this user may stop and continue all of them."""
        entries = self.entries()
        return bool(entries) and all(_may_signal(entry.pid) for entry in entries)

    def cpu_seconds(self) -> tuple[float, CpuSource]:
        """Processor time of the server process so far, and where that was read; other processes are not counted."""
        entry = living_processes().get(self.leader)
        return cpu_seconds(entry) if entry is not None else (0.0, CpuSource.TICKS)

    def memory(self) -> tuple[Memory, Memory]:
        """Of the server process, and the sum over all; pages that processes share count once for each of them."""
        each = {entry.pid: memory_of(entry.pid) for entry in self.entries()}
        total = Memory(
            sum(memory.peak_bytes for memory in each.values()),
            sum(memory.resident_bytes for memory in each.values()),
            sum(memory.anonymous_bytes for memory in each.values()),
        )
        return each.get(self.leader, Memory()), total

    async def pause(self) -> None:
        """Stop all of them (SIGSTOP); returns when none runs.

        Raises:
            NotObeyed: one still does after 5 s.
        """
        await self._signal_until(signal.SIGSTOP, lambda entry: entry.is_stopped)

    def resume(self) -> None:
        """Continue all of them (SIGCONT). Takes effect at once and never waits, so it can stand in a `finally`."""
        send_signal(signal.SIGCONT, self.entries())

    async def kill(self) -> None:
        """End all of them (SIGKILL); returns when none is left.

        Raises:
            NotObeyed: one is after 5 s.
        """
        await self._signal_until(signal.SIGKILL, lambda _: False)

    async def _signal_until(self, number: signal.Signals, done: Callable[[ProcessEntry], bool]) -> None:
        """Signal every living process that is not `done` until all are: one of them may be starting another."""
        for _ in range(round(_SIGNAL_SECONDS / _POLL_SECONDS)):
            rest = [entry for entry in self.entries() if not done(entry)]
            if not rest:
                return
            send_signal(number, rest)
            await asyncio.sleep(_POLL_SECONDS)
        raise NotObeyed(f"processes of {self.leader} do not obey {number.name}")


def send_signal(number: signal.Signals, entries: Iterable[ProcessEntry]) -> None:
    """To each of them that still lives."""
    for entry in entries:
        with suppress(ProcessLookupError):
            os.kill(entry.pid, number)


def _may_signal(pid: ProcessId) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True
