"""The folder of what a server keeps for itself, and its lock: several servers and commands may use it at a time."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def state_directory(path: Path) -> Path:
    """A directory of the settings, absolute. A home that nobody knows stays a tilde, which is then not there."""
    return Path(os.path.expanduser(path)).absolute()


def private_directory(path: Path) -> None:
    """Make the folder, for its owner alone, where it is missing. Raises OSError."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a directory")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep every other process out that takes this lock. Blocks; raises OSError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
