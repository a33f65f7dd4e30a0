"""The two ways in which a process of an engine starts, as multiprocessing sees them: afresh, and forked.

Both are ended by a kill only, because no other signal ends such a process (`vllm_child`).
"""

import io
import os
import signal
from multiprocessing import forkserver, popen_forkserver, popen_spawn_posix, reduction, spawn, util
from multiprocessing.connection import wait
from multiprocessing.context import set_spawning_popen
from multiprocessing.process import BaseProcess

from headrace_server.engine.vllm_forkserver import ask_for_child
from headrace_server.engine.vllm_leftovers import remove_shared_memory, shared_memory_of


class _Killing:
    """How a process that heeds no other signal is ended by the one that started it; it cannot tidy up by itself."""

    pid: int

    def terminate(self) -> None:
        """multiprocessing's name for asking a process to end, as it does with those that are left at its own end."""
        self.kill()

    def kill(self) -> None:
        """End it."""
        left = shared_memory_of([self.pid])
        self._send_signal(signal.SIGKILL)
        remove_shared_memory(left)

    def _send_signal(self, number: int) -> None:
        super()._send_signal(number)  # type: ignore[misc]


class SpawnedPopen(_Killing, popen_spawn_posix.Popen):
    """multiprocessing's."""


class ForkedPopen(_Killing, popen_forkserver.Popen):
    """multiprocessing's, asking another fork server than its only one, and watching the child itself: a fork server
    that dies must not look like the death of all its children."""

    _fds: list[int]

    def __init__(self, process: BaseProcess, address: str) -> None:
        self._address = address
        super().__init__(process)

    def _launch(self, process: BaseProcess) -> None:
        preparation = spawn.get_preparation_data(process.name)
        preparation = {name: value for name, value in preparation.items() if not name.startswith("init_main")}
        packed = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(preparation, packed)
            reduction.dump(process, packed)
        finally:
            set_spawning_popen(None)
        self._status, data = ask_for_child(self._address, self._fds)
        lifeline = os.dup(data)  # the child sees our end by it
        self.finalizer = util.Finalize(self, _close, (lifeline, self._status))
        with open(data, "wb") as pipe:
            self.pid = forkserver.read_signed(self._status)
            pipe.write(packed.getbuffer())
        self.sentinel = _sentinel(self.pid, self._status)
        if self.sentinel != self._status:
            util.Finalize(self, _close, (self.sentinel,))

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if self.returncode is None and wait([self.sentinel], 0 if flag == os.WNOHANG else None):
            self.returncode = self._exit_status()
        return self.returncode

    def _exit_status(self) -> int:
        try:
            status: int = forkserver.read_signed(self._status)
        except (OSError, EOFError):  # the fork server is gone
            return 255
        return status


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _sentinel(process_id: int, status: int) -> int:
    """A descriptor that can be read once the process has ended."""
    try:
        return os.pidfd_open(process_id)
    except (AttributeError, OSError):  # not on this system; or it has ended already
        return status
