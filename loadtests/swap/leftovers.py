"""What processes leave in /dev/shm when they are killed: named shared memory, and semaphores of multiprocessing.

Files are found by their inodes: a process that has opened a semaphore has it mapped under the name that it had for a
moment, before it got its own.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from headrace_server.bench.process_table import PROC, ProcessId

SHARED_MEMORY = Path("/dev/shm")


def shared_files(pids: Iterable[ProcessId]) -> frozenset[Path]:
    """The files in /dev/shm that these processes have mapped now."""
    mapped = {inode for pid in pids for inode in _mapped_inodes(pid)}
    return frozenset(path for path, inode in _present() if inode in mapped)


def _mapped_inodes(pid: ProcessId) -> Iterator[int]:
    with suppress(OSError):  # that one has just ended
        for line in (PROC / str(pid) / "maps").read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(f"{SHARED_MEMORY}/"):
                yield int(fields[4])


def _present() -> Iterator[tuple[Path, int]]:
    with suppress(FileNotFoundError):
        for path in SHARED_MEMORY.iterdir():
            with suppress(OSError):
                yield path, path.stat().st_ino


def remove(paths: Iterable[Path]) -> None:
    """Those that are still there, once nobody uses them."""
    for path in paths:
        path.unlink(missing_ok=True)
