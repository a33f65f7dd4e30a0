"""Small reads from a source: all bytes that were asked for or an error, and the right ones where a digest is known.

For headers, indexes and what proofs need; weights are read by `fetch`, chunk by chunk. Nothing is tried again here.
"""

import hashlib

from headrace_models.errors import DigestMismatch, SourceUnavailable, UnsafeModel
from headrace_models.sources.base import Source, SourceFile, read_exactly


def read_range(source: Source, file: SourceFile, begin: int, end: int) -> bytes:
    """Bytes `begin` to `end` (not included) of `file`; raises SourceUnavailable when fewer come, and what
    `Source.read` raises. An empty range asks for nothing."""
    if begin >= end:
        return b""
    data = read_exactly(source, file, begin, end)
    if len(data) != end - begin:
        raise SourceUnavailable(f"{file.path}: the source gave {len(data)} bytes of {end - begin}")
    return data


def read_file(source: Source, file: SourceFile, *, max_bytes: int) -> bytes:
    """All of a small file. Raises UnsafeModel when it is too large, DigestMismatch, and what `read_range` raises."""
    if file.size_bytes > max_bytes:
        raise UnsafeModel(f"{file.path} is larger than {max_bytes} bytes")
    data = read_range(source, file, 0, file.size_bytes)
    if file.digest is not None and hashlib.sha256(data).hexdigest() != file.digest.hex:
        raise DigestMismatch(f"{file.path} has another digest than {file.digest}")
    return data
