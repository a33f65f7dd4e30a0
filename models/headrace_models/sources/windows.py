"""Bodies of files that lie inside something larger: a blob, or a file of the spool."""

import os
from pathlib import Path

from headrace_models.errors import SourceUnavailable
from headrace_models.sources.base import Body

SKIPPED_BYTES = 1 << 20


class WindowBody:
    """Of a body of the whole, the part that is one file: bytes `begin` to `end` (not included) of the whole."""

    def __init__(self, whole: Body, begin: int, end: int) -> None:
        self._whole, self._origin = whole, begin
        self._position = whole.begin
        self._first, self._last = max(whole.begin, begin), min(whole.end, end)

    @property
    def begin(self) -> int:
        """See Body."""
        return self._first - self._origin

    @property
    def end(self) -> int:
        """See Body."""
        return self._last - self._origin

    def read(self, max_bytes: int) -> bytes:
        """See Body."""
        while self._position < self._first:
            self._next(min(SKIPPED_BYTES, self._first - self._position))
        return self._next(min(max_bytes, self._last - self._position)) if self._position < self._last else b""

    def _next(self, max_bytes: int) -> bytes:
        data = self._whole.read(max_bytes)
        if not data:
            raise SourceUnavailable(f"the answer ended {self._last - self._position} bytes early")
        self._position += len(data)
        return data


class FileBody:
    """Bytes of a local file that is one of a model's or holds one; `origin` is where the model's begins in it."""

    def __init__(self, path: Path, origin: int, begin: int, end: int) -> None:
        """Opens the file. Raises SourceUnavailable where that fails: the source was closed."""
        self._begin, self._end, self._position, self._origin = begin, end, begin, origin
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise SourceUnavailable(f"{path.name} cannot be read from the spool: {error.strerror}") from error

    @property
    def begin(self) -> int:
        """See Body."""
        return self._begin

    @property
    def end(self) -> int:
        """See Body."""
        return self._end

    def read(self, max_bytes: int) -> bytes:
        """See Body."""
        wanted = min(max_bytes, self._end - self._position)
        try:
            data = os.pread(self._descriptor, wanted, self._origin + self._position)
        except OSError as error:
            raise SourceUnavailable(f"the spool cannot be read: {error.strerror}") from error
        if wanted and not data:
            raise SourceUnavailable(f"the spool has lost {self._end - self._position} bytes")
        self._position += len(data)
        return data

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
