"""Which chunks of a shard are there, one byte each, and the SHA-256 that each had when it was written, 32 bytes each.

A missing or cut-off file reads as zeros: nothing is there, nothing is recorded. So damage costs a fetch, never wrong
bytes. Both files are fully allocated and written with `pwrite` only.
"""

from collections.abc import Iterator
from pathlib import Path

from headrace_models.store.files import read_part, write_part

DIGEST_BYTES = 32
NO_DIGEST = bytes(DIGEST_BYTES)
ABSENT = b"\0"
PRESENT = b"\1"


def read_marks(path: Path, begin: int, end: int) -> bytes:
    """The marks of chunks `begin` to `end` (not included), each ABSENT or PRESENT. Raises OSError."""
    data = read_part(path, begin, end - begin)
    return data.ljust(end - begin, ABSENT)


def write_mark(path: Path, chunk: int, mark: bytes) -> None:
    """Mark one chunk. Raises OSError."""
    write_part(path, mark, chunk)


def read_digest(path: Path, chunk: int) -> bytes | None:
    """The digest recorded of a chunk, None where there is none. Raises OSError."""
    data = read_part(path, chunk * DIGEST_BYTES, DIGEST_BYTES)
    return None if len(data) < DIGEST_BYTES or data == NO_DIGEST else data


def write_digest(path: Path, chunk: int, digest: bytes) -> None:
    """Record a chunk's digest. Raises OSError."""
    write_part(path, digest, chunk * DIGEST_BYTES)


def absent_runs(marks: bytes | bytearray) -> Iterator[range]:
    """Runs of chunks that are not there, as long as can be."""
    end = 0
    while (begin := _next_absent(marks, end)) < len(marks):
        end = marks.find(PRESENT, begin)
        end = len(marks) if end < 0 else end
        yield range(begin, end)


def _next_absent(marks: bytes | bytearray, begin: int) -> int:
    return next((chunk for chunk in range(begin, len(marks)) if marks[chunk] != PRESENT[0]), len(marks))
