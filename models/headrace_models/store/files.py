"""Reading and writing small files and parts of large ones, so that a crash leaves the old content or the new one.

`replace_file` is for files with one writer at a time (the temporary name is fixed, so that a dead writer leaves at most
one, and the next writer takes it over). Reads are `pread`, never maps: a file that somebody else cuts off must not end
the process with a SIGBUS.
"""

import os
from pathlib import Path

from headrace_models.errors import StoreDamaged

TEMPORARY_SUFFIX = ".tmp"
MAX_RECORD_BYTES = 64 << 10


def replace_file(path: Path, data: bytes) -> None:
    """Give `path` the content `data` in one step, on disk before this returns. Raises OSError."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600)
    try:
        write_at(descriptor, data, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, path)
    flush(path.parent)


def read_record(path: Path) -> bytes | None:
    """The content of a small file, None where there is none. Raises StoreDamaged over MAX_RECORD_BYTES, OSError."""
    data = read_part(path, 0, MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        raise StoreDamaged(f"{path.name} is larger than {MAX_RECORD_BYTES} bytes")
    return data or None


def read_part(path: Path, begin: int, size: int) -> bytes:
    """Bytes of a file from `begin` on: `size`, fewer where it ends, none where it is missing. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    try:
        return read_at(descriptor, begin, size)
    finally:
        os.close(descriptor)


def write_part(path: Path, data: bytes | memoryview, begin: int) -> None:
    """Write into a file that exists. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        write_at(descriptor, data, begin)
    finally:
        os.close(descriptor)


def read_at(descriptor: int, begin: int, size: int) -> bytes:
    """Bytes from `begin` on, fewer than `size` only where the file ends. Raises OSError."""
    first = os.pread(descriptor, size, begin)
    if len(first) in {0, size}:
        return first
    parts = [first]
    done = len(first)
    while done < size and (part := os.pread(descriptor, size - done, begin + done)):
        parts.append(part)
        done += len(part)
    return b"".join(parts)


def write_at(descriptor: int, data: bytes | memoryview, begin: int) -> None:
    """Write all of `data`, however many calls that takes. Raises OSError."""
    rest = memoryview(data).cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, begin)
        rest, begin = rest[written:], begin + written


def flush(path: Path) -> None:
    """`fsync` a file or a directory. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
