"""A source of models in memory, which counts what is asked of it and misbehaves when a test says so."""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from headrace_models.digest import Sha256
from headrace_models.errors import SourceChanged, SourceUnavailable
from headrace_models.sources.base import Proof, SourceFile, proof_of

BeforeRead = Callable[[SourceFile, int, int], None]


class MemorySource:
    """A `Source` of the files in `contents`, by path.

    Attributes:
        revision, files, proofs, pinned_index, max_connections: as in `Source`; a test may set them.
        requests: (path, begin, end) of every read, in the order in which they began.
        bytes_read: how many bytes were handed out.
        most_at_once: the largest number of reads that were open together.
        ignores_ranges: answer with the whole file.
        breaks_after: bodies give so many bytes and then break with SourceUnavailable.
        before_read: called first in every read; what it raises is the answer.
    """

    def __init__(
        self, contents: Mapping[str, bytes], *, with_digests: bool = True, pinned_index: str | None = None
    ) -> None:
        self.contents = dict(contents)
        self.files = tuple(_described(path, data, with_digests) for path, data in sorted(self.contents.items()))
        self.proofs: tuple[Proof, ...] = tuple(proof for file in self.files if (proof := proof_of(file)))
        self.revision = hashlib.sha256(repr(self.files).encode()).hexdigest()
        self.pinned_index = pinned_index
        self.max_connections = 4
        self.requests: list[tuple[str, int, int]] = []
        self.bytes_read = 0
        self.most_at_once = 0
        self.ignores_ranges = False
        self.breaks_after: int | None = None
        self.before_read: BeforeRead = lambda _file, _begin, _end: None
        self.is_closed = False
        self._open = 0
        self._lock = threading.Lock()

    @classmethod
    def from_directory(
        cls, directory: Path, *, with_digests: bool = True, pinned_index: str | None = None
    ) -> "MemorySource":
        """The files below a directory."""
        contents = {
            path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
        }
        return cls(contents, with_digests=with_digests, pinned_index=pinned_index)

    def file(self, path: str) -> SourceFile:
        """The listed file with this path."""
        return next(file for file in self.files if file.path == path)

    def change(self, path: str, data: bytes) -> None:
        """Put another version where `path` is; what was listed stays, so reads of it fail with SourceChanged."""
        self.contents[path] = data

    @contextmanager
    def read(self, file: SourceFile, begin: int, end: int) -> Iterator["MemoryBody"]:
        with self._lock:
            self.requests.append((file.path, begin, end))
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
        try:
            self.before_read(file, begin, end)
            yield self._body(file, begin, end)
        finally:
            with self._lock:
                self._open -= 1

    def close(self) -> None:
        self.is_closed = True

    def count(self, num_bytes: int) -> None:
        """Bodies tell what they gave."""
        with self._lock:
            self.bytes_read += num_bytes

    def _body(self, file: SourceFile, begin: int, end: int) -> "MemoryBody":
        if self.is_closed:
            raise SourceUnavailable("the source is closed")
        data = self.contents[file.path]
        if len(data) != file.size_bytes or (file.validator is not None and file.validator != _validator(data)):
            raise SourceChanged(f"{file.path} has changed")
        if self.ignores_ranges:
            begin, end = 0, len(data)
        return MemoryBody(self, data, begin, min(end, len(data)))


class MemoryBody:
    """A `Body`."""

    def __init__(self, source: MemorySource, data: bytes, begin: int, end: int) -> None:
        self.begin = begin
        self.end = end
        self._source = source
        self._data = data
        self._position = begin
        self._breaks_at = None if source.breaks_after is None else begin + source.breaks_after

    def read(self, max_bytes: int) -> bytes:
        stop = min(self.end, self._position + max_bytes)
        if self._breaks_at is not None and stop > self._breaks_at:
            if self._position >= self._breaks_at:
                raise SourceUnavailable("the connection broke")
            stop = self._breaks_at
        data = self._data[self._position : stop]
        self._position = stop
        self._source.count(len(data))
        return data


def _described(path: str, data: bytes, with_digests: bool) -> SourceFile:
    digest = Sha256(hashlib.sha256(data).hexdigest()) if with_digests else None
    return SourceFile(path, len(data), _validator(data), digest)


def _validator(data: bytes) -> str:
    return f"version-{hashlib.sha256(data).hexdigest()[:16]}"
