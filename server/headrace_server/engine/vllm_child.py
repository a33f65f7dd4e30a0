"""The first moments of a process of vLLM's, before vLLM runs in it: what a fresh process would have had from its start.

A forked process has the environment of the process that was forked, and libraries that have read theirs long ago. So
what a process is born with is sent along (`Birth`) and put in force before anything else is unpacked. Whether forked or
started afresh, it leaves word of itself for its engine (its id, and why it failed), and no signal but a kill ends it:
one that is meant for the whole server (Ctrl-C) would take away engines that the server is still draining. Imports
neither torch nor vLLM by itself.
"""

import contextlib
import gc
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, util
from pathlib import Path

from headrace_server.engine.vllm_leftovers import mark_shared_memory, remove_shared_memory, shared_memory_of
from headrace_server.engine.vllm_lives import birth_mark
from headrace_server.engine.vllm_load_report import report_failure

# The variables in which vLLM tells a worker's OpenMP its processors; which one, depends on the library.
_BINDINGS = ("GOMP_CPU_AFFINITY", "OMP_PLACES", "KMP_AFFINITY")
_ELEMENTS = 1 << 20  # enough for torch to use all of its threads
_FAILURE = "failure"
_LAST = -200
# Who logs an exception that ends a process, or that a worker answers with.
_FAILURE_LOGGERS = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor")


@dataclass(frozen=True, slots=True)
class Birth:
    """What a process is born with: all of its environment, and the folder of its engine."""

    environment: Mapping[str, str]
    folder: Path

    def begin(self) -> None:
        """Put it in force in this process."""
        with contextlib.suppress(ImportError):  # vLLM does without it
            import setproctitle

            setproctitle.getproctitle()  # it finds its place by the variables with which the process began
        os.environ.clear()
        os.environ.update(self.environment)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        (self.folder / str(os.getpid())).write_text(birth_mark(os.getpid()))
        mark_shared_memory(self.folder)
        if _is_forked():
            _catch_up()


def process_marks(folder: Path) -> dict[int, str]:
    """Ids of the processes of the engine of this folder, ended ones too, each with its `birth_mark`."""
    marks = {}
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name.isdigit():
                marks[int(path.name)] = path.read_text()
    return marks


def failure_path(folder: Path) -> Path:
    """Where a process of the engine of this folder says why it failed."""
    return folder / _FAILURE


def leave_nothing() -> None:
    """To be called when this process runs: a forked one ends without taking its interpreter down, which would have
    removed its shared memory. After everything else that multiprocessing does at an end."""
    if _is_forked():
        util.Finalize(None, _remove_own_memory, exitpriority=_LAST)


def _remove_own_memory() -> None:
    remove_shared_memory(shared_memory_of([os.getpid()]))


def report_failures(report: Path) -> logging.Handler:
    """From here on, vLLM's first failure in this process is written there. To be called once vLLM has set up its
    logging, which drops what others have added."""
    handler = _FailureReport(report)
    for name in _FAILURE_LOGGERS:
        logging.getLogger(name).addHandler(handler)
    return handler


class _FailureReport(logging.Handler):
    """Keeps the first exception that vLLM logs before it ends a process and tells its parent nothing."""

    def __init__(self, report: Path) -> None:
        super().__init__(logging.ERROR)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Exception):
            report_failure(self._report, error)


def _is_forked() -> bool:
    return forkserver.get_inherited_fds() is not None


def _catch_up() -> None:
    """What was read from the environment, or switched off, in the process that was forked."""
    gc.enable()
    tempfile.tempdir = None
    num_threads = os.environ.get("OMP_NUM_THREADS", "")
    if num_threads.isdigit():
        _use_threads(int(num_threads), bound_processors(os.environ))


def bound_processors(environment: Mapping[str, str]) -> list[int]:
    """The processors to which vLLM binds a worker's threads, in their order; empty where it does not."""
    for name in _BINDINGS:
        if name in environment:
            value = environment[name]
            return [int(number) for number in re.findall(r"\d+", value.partition("proclist=")[2] or value)]
    return []


def _use_threads(num_threads: int, processors: Sequence[int]) -> None:
    """As OpenMP does when it is loaded: thread i stays on processor i. It was loaded before the fork, and has not
    computed yet, so its threads are made here and bound from outside."""
    torch = sys.modules["torch"]
    torch.set_num_threads(num_threads)
    if not processors or not hasattr(os, "sched_setaffinity"):
        return
    os.sched_setaffinity(0, processors[:1])
    before = _threads()
    torch.zeros(_ELEMENTS).add_(1)
    for thread, processor in zip(sorted(_threads() - before), processors[1:], strict=False):
        os.sched_setaffinity(thread, [processor])


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}
