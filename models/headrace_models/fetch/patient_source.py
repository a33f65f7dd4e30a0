"""A source for small reads (headers, indexes) that tries again by itself: each range is read whole, then handed out."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from headrace_models.fetch.patience import Patience, retrying
from headrace_models.sources.base import Body, Proof, Source, SourceFile, read_exactly


class BytesBody:
    """`Body` over bytes in memory."""

    def __init__(self, data: bytes, begin: int) -> None:
        self._data = data
        self.begin = begin
        self.end = begin + len(data)

    def read(self, max_bytes: int) -> bytes:
        """See Body."""
        data, self._data = self._data[:max_bytes], self._data[max_bytes:]
        return data


@dataclass(frozen=True, slots=True)
class PatientSource:
    """`Source`, by way of another one."""

    source: Source
    patience: Patience
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def revision(self) -> str:
        """See Source."""
        return self.source.revision

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """See Source."""
        return self.source.files

    @property
    def proofs(self) -> tuple[Proof, ...]:
        """See Source."""
        return self.source.proofs

    @property
    def pinned_index(self) -> str | None:
        """See Source."""
        return self.source.pinned_index

    @property
    def max_connections(self) -> int:
        """See Source."""
        return self.source.max_connections

    @contextmanager
    def read(self, file: SourceFile, begin: int, end: int) -> Iterator[Body]:
        """See Source. A range that ends early is asked for again too."""
        data = retrying(partial(self._read, file, begin, end), self.patience, wait=self.stop.wait)
        yield BytesBody(data, begin)

    def _read(self, file: SourceFile, begin: int, end: int) -> bytes:
        return read_exactly(self.source, file, begin, end)

    def close(self) -> None:
        """See Source."""
        self.source.close()
