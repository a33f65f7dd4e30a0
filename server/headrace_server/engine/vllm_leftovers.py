"""Shared memory and semaphores that a killed process leaves behind: found by their names and by what it has mapped, and
removed.

vLLM's processes make them under names that multiprocessing thinks of, and remove them when they end by themselves.
Names that are made in an engine's process bear its engine's mark, because one that is killed in the midst of a start
may be gone before anybody has seen what it had mapped. Python's resource tracker would remove what is left when the
server ends, with a warning; an engine that is stopped gives its memory back at once. Linux only; elsewhere nothing is
found.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

_FOLDER = "/dev/shm/"
_INODE, _PATH = 4, 5  # of the fields of a line of /proc/PID/maps
_SEMAPHORE = "sem."
_SHARED_MEMORY = "psm_"
_RANDOM_CHARS = 16


def semaphore_prefix(folder: Path) -> str:
    """What multiprocessing is to begin the names of semaphores with, in processes of the engine of this folder."""
    return f"/mp-{_mark(folder)}"


def mark_shared_memory(folder: Path) -> None:
    """From here on, shared memory that is made in this process bears the mark of the engine of this folder. Python has
    no other way to say it."""
    if sys.platform == "linux":  # elsewhere names are short
        prefix = f"/{_SHARED_MEMORY}{_mark(folder)}_"
        shared_memory._SHM_NAME_PREFIX = prefix  # type: ignore[attr-defined]
        shared_memory._SHM_SAFE_NAME_LENGTH = len(prefix) + _RANDOM_CHARS  # type: ignore[attr-defined]


def marked_memory(folder: Path) -> set[Path]:
    """What bears the mark of the engine of this folder and is still there."""
    mark = _mark(folder)
    with contextlib.suppress(OSError):
        return {Path(entry.path) for entry in os.scandir(_FOLDER) if mark in entry.name}
    return set()


def _mark(folder: Path) -> str:
    return hashlib.blake2s(os.fsencode(folder), digest_size=8).hexdigest()


def shared_memory_of(process_ids: Iterable[int]) -> set[Path]:
    """What these processes have mapped and is still there under a name. Told by its inode: a semaphore is mapped before
    it gets its name."""
    mapped = {inode for process_id in process_ids for inode in _mapped(process_id)}
    with contextlib.suppress(OSError):
        return {Path(entry.path) for entry in os.scandir(_FOLDER) if entry.inode() in mapped}
    return set()


def _mapped(process_id: int) -> Iterator[int]:
    """Inodes of its shared memory: "7f0a-7f1b rw-s 0 00:1a 42 /dev/shm/psm_x"."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process_id}/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) > _PATH and fields[_PATH].startswith(_FOLDER):
                yield int(fields[_INODE])


def remove_shared_memory(paths: Iterable[Path]) -> None:
    """Remove them, and have the resource tracker forget them. Memory that is still mapped somewhere lives on there."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        if path.name.startswith(_SEMAPHORE):
            _forget("/" + path.name.removeprefix(_SEMAPHORE), "semaphore")
        elif path.name.startswith(_SHARED_MEMORY):
            _forget("/" + path.name, "shared_memory")


def _forget(name: str, kind: str) -> None:
    """Announced first: the tracker complains of what it has never heard of, or was told to forget already."""
    resource_tracker.register(name, kind)
    resource_tracker.unregister(name, kind)
