"""How vLLM's processes start, and which of them belong to an engine: the one seam under its EngineCore and workers.

vLLM asks `get_mp_context` for the way in which it starts processes. While an engine starts it is handed ours, which
forks them from a process that has imported everything (`vllm_forkserver`), or, where there is none, starts them afresh
as vLLM does by itself. Either way a process is born with its engine's environment (`vllm_child.Birth`), which never
stands in the server's own, and is known to its engine by its id. A worker is started by EngineCore, in the way in which
EngineCore was; `adopt` arranges that there.
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from uuid import uuid4

from headrace_server.engine.vllm_child import Birth, failure_path, leave_nothing, report_failures
from headrace_server.engine.vllm_leftovers import semaphore_prefix
from headrace_server.engine.vllm_popen import ForkedPopen, SpawnedPopen

logger = logging.getLogger(__name__)

# Told to a process of an engine, for those that it starts.
_FOLDER = "HEADRACE_ENGINE_FOLDER"
_FORKS = "HEADRACE_ENGINE_FORKS"


class StartClosed(Exception):
    """The engine was closed; it starts no more processes."""


class Seam:
    """How one engine's processes start.

    Attributes:
        folder: theirs; each leaves its id there.
        variables: added for them to this process's environment as it is at the moment of a start.
        is_closed: nothing starts any more.
    """

    def __init__(self, folder: Path, forks: Callable[[], str | None]) -> None:
        """`forks`: where children are to be had, None where there are none to be had."""
        self.folder = folder
        self.variables: Mapping[str, str] = {}
        self.is_closed = False
        self._forks = forks
        self._address: str | None = None

    def birth(self) -> Birth:
        """What a process that starts now is born with."""
        ours = {_FOLDER: str(self.folder)} | ({} if self._address is None else {_FORKS: self._address})
        return Birth({**os.environ, **self.variables, **ours}, self.folder)

    def launch(self, process: "EngineProcess") -> Any:
        """Start a process; what multiprocessing calls a Popen.

        Raises:
            StartClosed: see there.
        """
        if self.is_closed:
            raise StartClosed("closed while it was starting")
        launched = self._launched(process)
        if self.is_closed:
            launched.kill()
        return launched

    def _launched(self, process: "EngineProcess") -> Any:
        self._address = self._forks()
        if self._address is not None:
            try:
                return ForkedPopen(process, self._address)
            except (OSError, EOFError) as error:
                warn_of_slow_start(f"the process to fork from does not answer ({error})")
                self._address = None
        return SpawnedPopen(process)

    def forks(self) -> bool:
        """Whether a process that starts now has imported everything; waits for it."""
        return self._forks() is not None

    def close(self) -> None:
        """From here on nothing starts; a process that is starting this moment is killed."""
        self.is_closed = True


class EngineProcess(BaseProcess):
    """A process of an engine: in the child, its birth comes before whatever it was given is unpacked."""

    _start_method = "spawn"

    def __init__(self, seam: Seam, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._config["semprefix"] = semaphore_prefix(seam.folder)  # type: ignore[attr-defined]
        self._seam: Seam | None = seam

    @staticmethod
    def _Popen(process: "EngineProcess") -> Any:  # noqa: N802 - multiprocessing's name
        if process._seam is None:
            raise AssertionError("only the process that made it starts it")
        return process._seam.launch(process)

    def __reduce__(self) -> Any:
        seam = self._seam
        if seam is None:
            raise AssertionError("only the process that made it packs it")
        state = {**self.__dict__, "_seam": None}
        return _revive, (seam.birth(), bytes(reduction.ForkingPickler.dumps(state)))

    def run(self) -> None:
        leave_nothing()
        super().run()


def _revive(birth: Birth, state: bytes) -> EngineProcess:
    birth.begin()
    process = EngineProcess.__new__(EngineProcess)
    process.__dict__.update(pickle.loads(state))
    return process


class EngineContext(SpawnContext):
    """What vLLM is handed in the place of a context of multiprocessing's."""

    def __init__(self, seam: Seam) -> None:
        super().__init__()
        self.seam = seam

    def Process(self, **kwargs: Any) -> EngineProcess:  # type: ignore[override]  # noqa: N802 - multiprocessing's name
        """A process of this engine."""
        return EngineProcess(self.seam, **kwargs)


_starting: ContextVar[EngineContext | None] = ContextVar("starting_engine", default=None)


@contextmanager
def starting(seam: Seam) -> Iterator[None]:
    """What vLLM starts in this block (in this thread, or task) starts by `seam`."""
    _hand_over()
    token = _starting.set(EngineContext(seam))
    try:
        yield
    finally:
        _starting.reset(token)


def adopt() -> bool:
    """In a process of an engine: what it starts is of the same engine, and starts in the same way; and it says why it
    fails. In other processes: nothing. Returns which. vLLM has set up its logging before."""
    folder = os.environ.get(_FOLDER)
    if folder is None:
        return False
    report_failures(failure_path(Path(folder)))
    _hand_over()
    address = os.environ.get(_FORKS)
    _starting.set(EngineContext(Seam(Path(folder), lambda: address)))
    return True


@cache
def warn_of_slow_start(problem: str) -> None:
    """Say, once, why processes are started afresh where they could have been forked."""
    logger.warning("engine_fast_start_off", extra={"detail": f"engines start slowly: {problem}"})


def _context() -> EngineContext | None:
    return _starting.get()


def _socket_path() -> str | None:
    """Sockets lie with the engine: nobody else removes their files."""
    context = _starting.get()
    return None if context is None else f"ipc://{context.seam.folder / uuid4().hex}"


def _answer_of_a_fork(question: Callable[[], object]) -> object:
    """What vLLM wants to know of a model class and asks a process of its own that imports everything, 5 s for the first
    model of a class on a machine; None where there is nothing to fork."""
    context = _starting.get()
    if context is None or not context.seam.forks():
        return None
    import cloudpickle  # type: ignore[import-untyped]

    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(cloudpickle.dumps(question), theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        return pickle.loads(ours.recv_bytes())
    except EOFError:  # it failed, and so will vLLM's, which says how
        return None
    finally:
        ours.close()
        process.join()


def _answer(question: bytes, pipe: Connection) -> None:
    pipe.send_bytes(pickle.dumps(pickle.loads(question)()))


def _hand_over() -> None:
    for name, attribute, ours in _HANDED_OVER:
        module = import_module(name)
        theirs = getattr(module, attribute)
        if not isinstance(theirs, _Choice):
            setattr(module, attribute, _Choice(ours, theirs))


class _Choice:
    """A function of vLLM's, unless an engine of ours is starting."""

    def __init__(self, ours: Callable[..., object], theirs: Callable[..., object]) -> None:
        self._ours = ours
        self._theirs = theirs

    def __call__(self, *args: object) -> object:
        return self._ours(*args) or self._theirs(*args)


# Where vLLM has imported by name what it starts processes and makes sockets with.
_HANDED_OVER: tuple[tuple[str, str, Callable[..., object]], ...] = (
    ("vllm.model_executor.models.registry", "_run_in_subprocess", _answer_of_a_fork),
    ("vllm.v1.engine.utils", "get_mp_context", _context),
    ("vllm.v1.engine.coordinator", "get_mp_context", _context),
    ("vllm.v1.executor.multiproc_executor", "get_mp_context", _context),
    ("vllm.v1.engine.utils", "get_open_zmq_ipc_path", _socket_path),
    ("vllm.v1.utils", "get_open_zmq_ipc_path", _socket_path),
)
