"""What readers wait for, told to the process that fetches: an append-only file of 16-byte records.

A record is four little-endian u32: shard, first chunk, last chunk, 0. Appends of that size do not tear, and none
crosses a block. Nothing depends on a record: whoever waits says so again (`ModelReader.wait_for`), so the log may be
cut, lost or full of rubbish.
"""

import contextlib
import os
import struct
from pathlib import Path

from headrace_models.seek_index import SeekIndex
from headrace_models.store.checking import shard_size
from headrace_models.store.files import read_part

_RECORD = struct.Struct("<IIII")
MAX_LOG_BYTES = 1 << 20


def append_demand(path: Path, file: int, chunks: range) -> None:
    """Tell that `chunks` of a shard are wanted. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, _RECORD.pack(file, chunks.start, chunks.stop - 1, 0))
    finally:
        os.close(descriptor)


class DemandLog:
    """The reading end, for one thread."""

    def __init__(self, path: Path, index: SeekIndex) -> None:
        self._path = path
        self._index = index
        self._offset = 0

    def take(self) -> tuple[tuple[int, range], ...]:
        """(shard, chunks) of what was demanded since the last call. Raises OSError."""
        if (shard_size(self._path) or 0) < self._offset:
            self._offset = 0  # somebody has cut it
        data = read_part(self._path, self._offset, MAX_LOG_BYTES)
        whole = len(data) // _RECORD.size * _RECORD.size
        self._offset += whole
        found = tuple(filter(None, map(self._demand, _RECORD.iter_unpack(data[:whole]))))
        if self._offset >= MAX_LOG_BYTES:
            self.clear()
        return found

    def clear(self) -> None:
        """Forget all demands: the next writer shall not begin with those of readers that are gone."""
        with contextlib.suppress(OSError):
            os.truncate(self._path, 0)
            self._offset = 0

    def _demand(self, record: tuple[int, int, int, int]) -> tuple[int, range] | None:
        file, first, last, zero = record
        if zero or file >= len(self._index.layouts) or not first <= last < len(self._index.layouts[file]):
            return None
        return file, range(first, last + 1)
