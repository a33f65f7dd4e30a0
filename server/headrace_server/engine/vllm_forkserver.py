"""A process that has imported vLLM, and forks a copy of itself for whoever asks: engines start without importing.

`ForkServer` is its owner's side; the process itself is this module, run on its own. The forking is done by Python's own
fork server (`multiprocessing.forkserver.main`), so a child is the process of whoever asked for it: it sees their end,
and they see its. The process never touches a device and never computes, because neither survives a fork; it looks at
itself before it forks anything, and says so where that does not hold. It ends with its owner at once, however that
ends.
"""

import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from multiprocessing import forkserver, resource_tracker
from multiprocessing.reduction import sendfds
from pathlib import Path
from typing import Any

_SOCKET_NAME = "forks"
_READY = "ready"
_STOP_SECONDS = 5.0

_MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.model_executor.models.llama",
    "headrace_server.engine.vllm_child",
    "headrace_server.engine.vllm_loader",
)
_CPU_MODULES = ("vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner")
_GPU_MODULES = ("vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu_model_runner")


class ForkServerUnusable(Exception):
    """There is nothing to fork from; the message says why in one line."""


class ForkServer:
    """Starts the process and knows whether it can be used. Safe to use from several threads."""

    def __init__(self, folder: Path, module: str = __name__) -> None:
        """`folder`: where its socket is made; somebody removes it. `module` is run; it calls `main`."""
        self._module = module
        self._address = str(folder / _SOCKET_NAME)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._alive: int | None = None  # the process ends when this is closed
        self._ready: int | None = None
        self._problem = ""

    @property
    def pid(self) -> int | None:
        """The process, once it was started."""
        return None if self._process is None else self._process.pid

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the process with these variables, if nobody has. Returns at once: it imports for seconds, and who asks
        for a child before that is done waits. What goes wrong, `address` says."""
        with self._lock:
            if self._process is not None or self._problem:
                return
            try:
                self._launch(environment)
            except OSError as error:
                self._problem = f"it cannot be started: {error.strerror or error}"

    def _launch(self, environment: Mapping[str, str]) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            os.chmod(self._address, 0o600)
            listener.listen()
            alive, self._alive = os.pipe()
            self._ready, ready = os.pipe()
            fds = (listener.fileno(), alive, ready)
            command = [sys.executable, "-m", self._module, *map(str, fds)]
            try:
                self._process = subprocess.Popen(command, pass_fds=fds, env=dict(environment), stdin=subprocess.DEVNULL)
            finally:
                os.close(alive)
                os.close(ready)

    def address(self) -> str:
        """Where to ask for children; waits until it has imported.

        Raises:
            ForkServerUnusable: it was not started, has ended, or is not fit to be forked.
        """
        with self._lock:
            if self._ready is not None:
                self._hear(self._ready)
            if self._problem or self._process is None:
                raise ForkServerUnusable(self._problem or "it was not started")
            if self._process.poll() is not None:
                raise ForkServerUnusable("it has ended")
            return self._address

    def _hear(self, ready: int) -> None:
        with os.fdopen(ready, "rb") as pipe:
            said = pipe.read().decode(errors="replace")
        self._ready = None
        self._problem = "" if said == _READY else said or "it has ended"

    def stop(self) -> None:
        """End the process; its children live on. It is not started again."""
        with self._lock:
            process, self._process, self._problem = self._process, None, "it was stopped"
            for descriptor in (self._alive, self._ready):
                if descriptor is not None:
                    os.close(descriptor)
            self._alive = self._ready = None
        if process is not None:
            process.kill()
            process.wait(_STOP_SECONDS)


@cache
def fork_server(folder: Path) -> ForkServer:
    """The one of this folder; its owner is this process."""
    return ForkServer(folder)


def ask_for_child(address: str, fds: Sequence[int]) -> tuple[int, int]:
    """Have a child forked that inherits `fds`. Returns two descriptors: where its id and then its exit status can be
    read, and where it reads what it is to run.

    Raises:
        OSError: nobody answers there.
    """
    status, status_end = os.pipe()
    data_end, data = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            tracker: Any = resource_tracker._resource_tracker.getfd()
            # What multiprocessing's children get. The third would keep the fork server alive: no child of ours may.
            sendfds(client, [data_end, status_end, tracker, tracker, *fds])
    except BaseException:
        os.close(status)
        os.close(data)
        raise
    finally:
        os.close(status_end)
        os.close(data_end)
    return status, data


def _end_with(alive: int) -> None:
    """Let the kernel end this process (SIGIO) when the other end of a pipe is closed, in the midst of an import too. A
    thread that waits would do the same, and must not be there when a process forks."""
    fcntl.fcntl(alive, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(alive, fcntl.F_SETFL, fcntl.fcntl(alive, fcntl.F_GETFL) | os.O_ASYNC)


def _unfitness() -> str:
    """Import everything; why children of this process would not work, or nothing."""
    gc.disable()  # 20 to 27 % of the time that the imports take; children enable it again
    for name in _MODULES:
        import_module(name)
    from vllm.platforms import current_platform

    for name in _CPU_MODULES if current_platform.is_cpu() else _GPU_MODULES:
        import_module(name)
    from vllm.utils.system_utils import set_process_title

    set_process_title("ForkServer")
    gc.freeze()
    import torch

    return "its imports have touched a GPU" if torch.cuda.is_initialized() else ""


def main(listener: int, alive: int, ready: int, *, unfitness: Callable[[], str] = _unfitness) -> None:
    """Run the process: import (`unfitness` does, and says what is wrong with the result), fork until the owner is
    gone."""
    _end_with(alive)
    for stop in (signal.SIGTERM, signal.SIGHUP):  # sent to all of a service; engines in use would lose their parent
        signal.signal(stop, signal.SIG_IGN)
    for descriptor in (listener, alive, ready):
        os.set_inheritable(descriptor, False)
    said = "what it imports fails; the log says how"
    try:
        said = unfitness() or _READY
    finally:
        os.write(ready, said.encode())
        os.close(ready)
    try:
        if said == _READY:
            forkserver.main(listener, alive, ())
    finally:
        os._exit(0)  # what was imported takes its time to be taken down


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
