"""Whether a process lives, by its id, for processes that are not this one's children.

A process that was killed gives its memory back before anybody is told of its end: 0.1 s for 2 GB, more on a busy
machine. Linux marks it as ending from the first moment on, and counts its memory as free only at the last.
"""

import os
from enum import Enum
from pathlib import Path

_EXITING = 0x4  # the kernel's PF_EXITING
_STATE, _FLAGS, _BEGAN = 0, 6, 19  # of the fields of /proc/PID/stat after the name
_ENDED = frozenset("ZXx")


class Life(Enum):
    """How far a process has come; GONE is false."""

    RUNNING = "running"
    ENDING = "ending"
    GONE = ""

    def __bool__(self) -> bool:
        return self is not Life.GONE


def life_of(process_id: int) -> Life:
    """How far it has come. A stopped one runs; a zombie is gone once none of its threads holds its memory."""
    fields = _fields(process_id)
    if fields is None:
        return Life.GONE if _has_proc() else _told_by_psutil(process_id)
    if fields[_STATE] in _ENDED:
        return Life.ENDING if _num_threads(process_id) > 1 else Life.GONE
    return Life.ENDING if int(fields[_FLAGS]) & _EXITING else Life.RUNNING


def birth_mark(process_id: int) -> str:
    """What tells a process from a later one with its id: when it began, in a clock that nobody sets. Empty where there
    is no such process, or the system does not say."""
    fields = _fields(process_id)
    return "" if fields is None else fields[_BEGAN]


def _fields(process_id: int) -> list[str] | None:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _num_threads(process_id: int) -> int:
    try:
        return len(os.listdir(f"/proc/{process_id}/task"))
    except OSError:
        return 0


def _has_proc() -> bool:
    return Path("/proc/self/stat").exists()


def _told_by_psutil(process_id: int) -> Life:
    import psutil  # type: ignore[import-untyped]

    try:
        status = psutil.Process(process_id).status()
    except psutil.NoSuchProcess:
        return Life.GONE
    return Life.GONE if status == psutil.STATUS_ZOMBIE else Life.RUNNING
