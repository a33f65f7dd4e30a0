"""The processes of one engine, by the word that each leaves of itself: whether all live, and their end.

An engine's workers are not this process's children, nor always its EngineCore's in the eyes of the system, so that
nobody else could say which they are. A folder belongs to the group, for their ids, sockets and files; it goes with
them. Ids are used again for other processes: one counts as ours only while it is the process that left the word.
"""

import contextlib
import itertools
import logging
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

from headrace_server.engine.vllm_child import process_marks
from headrace_server.engine.vllm_leftovers import marked_memory, remove_shared_memory, shared_memory_of
from headrace_server.engine.vllm_lives import Life, birth_mark, life_of

logger = logging.getLogger(__name__)

STOPPED = "the engine of this model has stopped"

_GONE_SECONDS = 10.0
_LOOK_SECONDS = 0.02


class ProcessGroup:
    """One engine's processes."""

    def __init__(self, scratch: Path | None) -> None:
        """`scratch`: where its folder is made; None: the system's temporary folder."""
        self.folder = _new_folder(Path(tempfile.gettempdir()) if scratch is None else scratch)
        self._settled: tuple[int, ...] = ()
        self._shared_memory: set[Path] = set()

    def settle(self) -> tuple[int, ...]:
        """All processes have started: from now on each of them is needed. Returns their ids."""
        self._settled = tuple(self._present())
        self._shared_memory = shared_memory_of(self._settled)
        return self._settled

    def is_broken(self) -> bool:
        """Whether one of them has ended, or is about to; 30 µs for each."""
        return any(life_of(process) is not Life.RUNNING for process in self._settled)

    def _present(self) -> list[int]:
        marks = process_marks(self.folder)
        return [process for process, mark in marks.items() if birth_mark(process) == mark and life_of(process)]

    def end(self) -> None:
        """Kill them, wait until they are gone and with them their memory, remove what they leave. Blocks."""
        deadline = time.monotonic() + _GONE_SECONDS
        while (present := self._present()) and time.monotonic() < deadline:
            self._shared_memory |= shared_memory_of(present)
            for process in present:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(_LOOK_SECONDS)
        if present:
            logger.error("engine_processes_stay", extra={"detail": f"killed, and still there: {present}"})
        remove_shared_memory(self._shared_memory | marked_memory(self.folder))
        self._shared_memory = set()
        shutil.rmtree(self.folder, ignore_errors=True)


def _new_folder(parent: Path) -> Path:
    """A folder with a short name: the paths of sockets are bounded."""
    for number in itertools.count():
        with contextlib.suppress(FileExistsError):
            folder = parent / f"e{number}"
            folder.mkdir(mode=0o700)
            return folder
    raise AssertionError
