"""What files take on disk: allocated blocks, free space, files with holes, and holes made again.

A sparse file's size says nothing about its room, so everything here counts `st_blocks`, which stat(2) states in units
of 512 bytes whatever the file system's own block size.
"""

import ctypes
import errno
import os
import sys
from pathlib import Path

STAT_BLOCK_BYTES = 512
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02


def allocated_bytes(directory: Path) -> int:
    """What everything below `directory` takes, itself included; what vanishes meanwhile counts nothing."""
    total = _allocated(directory)
    for root, folders, names in os.walk(directory):
        total += sum(_allocated(Path(root, name)) for name in (*folders, *names))
    return total


def free_bytes(directory: Path) -> int:
    """What the file system of `directory` has left for us. Raises OSError."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def make_sparse(path: Path, size: int) -> None:
    """Make a file of `size` bytes that takes no room, or bring one to that size. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def make_allocated(path: Path, size: int) -> None:
    """Make a file of `size` zeros with all of its blocks, or bring one to that size. Raises OSError.

    A later write into it finds its room there.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(descriptor, size)
        _allocate(descriptor, size)
    finally:
        os.close(descriptor)


def punch_hole(path: Path, begin: int, end: int) -> bool:
    """Give back the blocks of bytes `begin` to `end` (not included), which read as zeros afterwards.

    Blocks that other bytes share stay. False where the file system cannot do it. Raises OSError.
    """
    if sys.platform != "linux":
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return _fallocate_hole(descriptor, begin, end - begin)
    finally:
        os.close(descriptor)


def size_text(num_bytes: int) -> str:
    """A size for people, in powers of ten."""
    if num_bytes < 10**9:
        return f"{num_bytes / 1e6:.1f} MB"
    return f"{num_bytes / 1e9:.1f} GB"


def _allocated(path: Path) -> int:
    try:
        return os.lstat(path).st_blocks * STAT_BLOCK_BYTES
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _allocate(descriptor: int, size: int) -> None:
    if not size:
        return
    if sys.platform != "darwin":
        os.posix_fallocate(descriptor, 0, size)
        return
    held = os.pread(descriptor, size, 0)  # macOS has no posix_fallocate; these files are small
    os.pwrite(descriptor, held, 0)


def _fallocate_hole(descriptor: int, begin: int, size: int) -> bool:
    library = ctypes.CDLL(None, use_errno=True)
    # off_t, which has 64 bits wherever Python runs.
    done = library.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(begin), ctypes.c_int64(size))
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.EOPNOTSUPP, errno.ENOSYS}:
        return False
    raise OSError(number, os.strerror(number))
