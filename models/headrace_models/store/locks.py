"""Locks on files that hold between threads, processes and containers of one host, and die with their holder.

On Linux these are open-file-description locks (`F_OFD_SETLK`, fcntl(2)): unlike POSIX record locks they belong to the
descriptor, so that two threads exclude each other and closing another descriptor of the file releases nothing.
Elsewhere `flock` does the same for whole files. Descriptors are closed on exec; a child made by fork alone keeps its
parent's locks alive. Lock files are never removed while what they protect may live.

What is waited for while what is held, in this order: the store's lock, a key's, `fetch.lock`, `lease.lock`. Nobody can
wait in a circle: whoever holds the store's lock or an exclusive lease only tries for others, `fetch.lock` is only ever
tried for, and who waits for a key's lock holds nothing.
"""

import fcntl
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Self

from headrace_models.errors import StoreUnusable
from headrace_models.store.mounts import file_system_type

POLL_SECONDS = 0.02
PROBE_PREFIX = ".lock-probe-"
# struct flock: l_type, l_whence, l_start, l_len, l_pid, and what pads it to the alignment of its longest member.
FLOCK_FORMAT = "hhqqi4x"


class Hold(StrEnum):
    """SHARED: with other shared ones. EXCLUSIVE: alone."""

    SHARED = "shared"
    EXCLUSIVE = "exclusive"


class FileLock:
    """A lock that is held until `close`, or until the process ends. Any thread may close it, more than once."""

    __slots__ = ("_descriptor", "_guard")

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._guard = threading.Lock()

    def close(self) -> None:
        """Release the lock."""
        with self._guard:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def is_of(self, path: Path) -> bool:
        """Whether `path` still names the file that is locked; it may have been removed or replaced since."""
        with self._guard:
            if self._descriptor is None:
                return False
            try:
                return os.path.samestat(os.fstat(self._descriptor), path.stat())
            except (FileNotFoundError, NotADirectoryError):
                return False

    def touch(self) -> None:
        """Set the lock file's modification time to now. Raises OSError."""
        with self._guard:
            if self._descriptor is not None:
                os.utime(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def try_lock(path: Path, hold: Hold) -> FileLock | None:
    """Lock the file `path`, made if absent; None where somebody else's lock is in the way. Raises OSError."""
    descriptor = _open(path)
    locked = False
    try:
        locked = _set(descriptor, hold)
    finally:
        if not locked:
            os.close(descriptor)
    return FileLock(descriptor) if locked else None


def wait_lock(path: Path, hold: Hold, *, while_waiting: Callable[[], None]) -> FileLock:
    """Lock the file `path`, made if absent, once everybody in the way has gone.

    `while_waiting` is called every POLL_SECONDS until then; what it raises ends the wait. Raises OSError.
    """
    descriptor = _open(path)
    locked = False
    try:
        while not (locked := _set(descriptor, hold)):
            while_waiting()
            time.sleep(POLL_SECONDS)
    finally:
        if not locked:
            os.close(descriptor)
    return FileLock(descriptor)


def is_held(path: Path, hold: Hold) -> bool:
    """Whether `hold` would be refused now; False where there is no such file. Raises OSError.

    Where the system cannot tell (not Linux) the lock is taken for a moment, which may refuse somebody else's try.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return _would_refuse(descriptor, hold)
    finally:
        os.close(descriptor)


def probe_locking(directory: Path) -> None:
    """Try the locks on a file in `directory`.

    Raises StoreUnusable where they are refused, or granted to two at once (some network file systems), OSError where
    no file can be made.
    """
    path = directory / f"{PROBE_PREFIX}{os.getpid()}-{threading.get_ident()}"
    try:
        with _opened(path) as first, _opened(path) as second:
            works = _works(directory, first.number, second.number)
    finally:
        path.unlink(missing_ok=True)
    if not works:
        raise StoreUnusable(_no_locks(directory, "gives one lock to two holders"))


def _works(directory: Path, first: int, second: int) -> bool:
    try:
        return _excludes(first, second)
    except OSError as error:
        raise StoreUnusable(_no_locks(directory, f"refuses locks ({error.strerror or error})")) from error


def _excludes(first: int, second: int) -> bool:
    alone = _set(first, Hold.EXCLUSIVE) and not _set(second, Hold.EXCLUSIVE)
    apart = not _set(second, Hold.SHARED) and _set(first, Hold.SHARED)
    together = _set(second, Hold.SHARED) and not _set(first, Hold.EXCLUSIVE)
    return alone and apart and together


def _no_locks(directory: Path, what: str) -> str:
    kind = file_system_type(directory)
    where = f"the file system of {directory}" + (f" ({kind})" if kind else "")
    return f"{where} {what}: put the model cache (cache.dir) on a local disk"


class _opened:  # noqa: N801
    """A descriptor of a lock file for the time of a `with`."""

    def __init__(self, path: Path) -> None:
        self.number = _open(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self.number)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


if sys.platform == "linux":

    def _set(descriptor: int, hold: Hold) -> bool:
        """Take the lock, or change the one that the descriptor has; False where another one is in the way."""
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(hold))
        except (BlockingIOError, PermissionError):  # EAGAIN, EACCES
            return False
        return True

    def _would_refuse(descriptor: int, hold: Hold) -> bool:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _flock(hold))
        (found,) = struct.unpack_from("h", answer)
        return bool(found != fcntl.F_UNLCK)

    def _flock(hold: Hold) -> bytes:
        kind = fcntl.F_WRLCK if hold is Hold.EXCLUSIVE else fcntl.F_RDLCK
        return struct.pack(FLOCK_FORMAT, kind, os.SEEK_SET, 0, 0, 0)

else:

    def _set(descriptor: int, hold: Hold) -> bool:
        """Take the lock, or change the one that the descriptor has; False where another one is in the way."""
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if hold is Hold.EXCLUSIVE else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _would_refuse(descriptor: int, hold: Hold) -> bool:
        return not _set(descriptor, hold)
