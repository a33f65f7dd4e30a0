"""One server runs at a time: whoever has no turn is stopped with all of its processes, and takes no processor time.

Everything is continued when the context is left, by whatever way: the end, an exception, a cancelled task. If this
program is killed, its guardian does it. A server without processes of ours to signal just runs on.
"""

from collections.abc import Iterator, Mapping, Sequence

from headrace_server.bench.guardian import Guardian
from headrace_server.bench.process_table import ProcessId
from headrace_server.bench.processes import ServerProcesses


class Turns:
    """Gives turns to servers by name. Use as a context; one task calls."""

    def __init__(self) -> None:
        self._guardian = Guardian()
        self._processes: dict[str, ServerProcesses] = {}
        self._stopped: dict[str, ServerProcesses] = {}

    def __enter__(self) -> "Turns":
        self._guardian.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for name in list(self._stopped):
                self._resume(name)
        finally:
            self._guardian.__exit__()

    def add(self, name: str, processes: ServerProcesses) -> None:
        """From now on this server is stopped while it has no turn."""
        self._processes[name] = processes

    def remove(self, name: str) -> None:
        """It is about to end: continue it, and stop it no more."""
        self._processes.pop(name, None)
        self._resume(name)

    async def give(self, name: str) -> None:
        """Let this server run, and no other one.

        Raises:
            NotObeyed: one of the others cannot be stopped.
        """
        for other, processes in self._processes.items():
            if other != name and other not in self._stopped:
                self._stopped[other] = processes
                self._guardian.watch(self._stopped_ids())
                await processes.pause()
        self._guardian.watch(self._stopped_ids())  # some may have started more processes before they stopped
        self._resume(name)

    def _resume(self, name: str) -> None:
        if (processes := self._stopped.pop(name, None)) is not None:
            processes.resume()
            self._guardian.watch(self._stopped_ids())

    def _stopped_ids(self) -> Iterator[ProcessId]:
        for processes in self._stopped.values():
            yield from (entry.pid for entry in processes.entries())


def reason_not_to_pause(sides: Mapping[str, ServerProcesses | None]) -> str | None:
    """Why these servers cannot take turns, in words for the report; None: they can."""
    for name, processes in sides.items():
        if processes is None:
            return f"no process of {name} was found on this machine"
        if not processes.can_be_signalled:
            return f"the processes of {name} belong to another user"
    pids = [{entry.pid for entry in processes.entries()} for processes in sides.values() if processes]
    if len(set().union(*pids)) < sum(map(len, pids)):
        return "both servers share processes"
    return None


def block_order(sides: Sequence[str], num_blocks: int) -> Iterator[tuple[int, str]]:
    """Number of the block and whose it is: A B, B A, A B, … so that neither is always the first one."""
    for number in range(num_blocks):
        for side in sides if number % 2 == 0 else reversed(sides):
            yield number, side
