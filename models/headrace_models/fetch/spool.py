"""A folder for what a source must unpack before it can be read; gone with the fetch, however that ends.

Each has a lock that its process holds: one whose lock is free was left by a process that is dead, and is removed by the
next fetch. Made and swept under one lock, so that nobody sweeps a folder between its making and its locking.
"""

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from headrace_models.publication import make_private
from headrace_models.store.locks import Hold, try_lock, wait_lock

LOCK_NAME = "lock"


@contextmanager
def spool_directory(cache_dir: Path) -> Iterator[Path]:
    """An empty folder on the store's file system. Raises OSError."""
    parent = cache_dir / "spool"
    make_private(parent)
    with wait_lock(parent / LOCK_NAME, Hold.EXCLUSIVE, while_waiting=lambda: None):
        _sweep(parent)
        folder = Path(mkdtemp(dir=parent))
        held = try_lock(folder / LOCK_NAME, Hold.EXCLUSIVE)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            held.close()


def _sweep(parent: Path) -> None:
    for folder in parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # its owner has just removed it
            if folder.is_dir() and (lock := try_lock(folder / LOCK_NAME, Hold.EXCLUSIVE)) is not None:
                with lock:
                    shutil.rmtree(folder, ignore_errors=True)
