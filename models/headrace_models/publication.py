"""Publish a directory in one step: readers see it complete or not at all, whatever dies when.

A directory is made under a hidden temporary name beside its public one, flushed to disk, then renamed. Everything
with the same `name` is done under one `flock`, so whatever temporary directory is found once the lock is held was left
by a process that is gone, and is removed; no process ids are compared, which would be wrong between containers that
share a volume. Lock files are never removed: removing one would let two holders in.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK_POLL_SECONDS = 0.1


@contextlib.contextmanager
def exclusive_lock(path: Path, *, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the `flock` of `path` (made if absent); one holder among all threads, processes and containers of a host.

    `while_waiting` is called every LOCK_POLL_SECONDS until the lock is ours; what it raises is passed on. The kernel
    releases the lock when its holder dies.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while not _try_lock(descriptor):
            while_waiting()
            time.sleep(LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def make_private(directory: Path) -> None:
    """Make `directory`, and what is missing above it, for our user alone; one that exists keeps its mode."""
    for folder in [*reversed(directory.parents), directory]:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)


@contextlib.contextmanager
def temporary_sibling(public: Path, *, name: str) -> Iterator[Path]:
    """An empty directory beside `public`, removed at the end unless it was published."""
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(name), dir=public.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, public: Path, *, name: str) -> None:
    """Flush `temporary` to disk and give it the name `public`; what had that name before is removed.

    The caller holds the lock of `name`. A crash between the two renames leaves no `public`, and the next holder of
    the lock sweeps the rest away.
    """
    flush(temporary)
    temporary.chmod(0o755)
    with temporary_sibling(public, name=name) as trash:
        with contextlib.suppress(FileNotFoundError):
            public.rename(trash / "replaced")
        temporary.rename(public)
        _flush_one(public.parent)


def sweep(parent: Path, *, name: str) -> None:
    """Remove the temporary directories of `name` below `parent`; the caller holds its lock."""
    for leftover in parent.glob(f"{_prefix(name)}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def flush(directory: Path) -> None:
    """`fsync` every file below `directory`, every folder, and `directory` itself, in that order."""
    for root, _folders, names in os.walk(directory, topdown=False):
        for name in names:
            _flush_one(Path(root, name))
        _flush_one(Path(root))


def _prefix(name: str) -> str:
    return f".{name}.tmp-"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise
        return False
    return True


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
