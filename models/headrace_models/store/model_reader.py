"""Reading a model that may still be arriving: what is there, what is wanted, and waiting for it.

Holds a lease, so that nothing it has seen is evicted while it is open. It looks at marks with `pread`, never through a
map: a file that somebody cuts off is an error here, not a SIGBUS. Bytes are for the caller to read, from
`StoredModel.shard_path`, once `wait_for` has returned.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from headrace_models.errors import DigestMismatch, FetchFailed, StoreDamaged
from headrace_models.seek_index import SeekIndex
from headrace_models.store.checking import shard_size
from headrace_models.store.chunk_map import PRESENT, read_marks
from headrace_models.store.demand_log import append_demand
from headrace_models.store.locks import FileLock, Hold, is_held
from headrace_models.store.model_directory import FETCH_LOCK, ModelDirectory
from headrace_models.store.recovery import is_believable
from headrace_models.store.refusals import explained
from headrace_models.store.store_status import read_failure
from headrace_models.trust import Trust

if TYPE_CHECKING:
    from headrace_models.store.stored_model import StoredModel

POLL_SECONDS = 0.005
DEMAND_AGAIN_SECONDS = 1.0
# A failure older than the reader may be that of a fetch which is just being started again.
OLD_FAILURE_SECONDS = 2.0


class ModelReader:
    """Made by `StoredModel.reader`. Methods may be called from many threads."""

    def __init__(self, model: "StoredModel", directory: ModelDirectory, lease: FileLock) -> None:
        self._model = model
        self._directory = directory
        self._lease = lease
        self._believed = directory.is_local
        self._old_failure = _failure_mark(directory)
        status = directory.read_status()
        self._num_doubts = status.num_doubts
        # Nobody evicts under our lease, and what proves wrong later is told by `wait_until_proven`.
        self._is_all_there = not directory.is_local and status.sealed and directory.is_full()
        self._shards = [directory.shard(file) for file in range(len(directory.index.files))]

    @property
    def model(self) -> "StoredModel":
        """The model that is read."""
        return self._model

    @property
    def index(self) -> SeekIndex:
        """Its seek index."""
        return self._directory.index

    def is_present(self, file: int, begin: int, end: int) -> bool:
        """Whether bytes `begin` to `end` (not included) of a shard are there, checked. Raises StoreError."""
        if self._is_all_there:
            return True
        chunks = self.index.layouts[file].covering(begin, end)
        with explained("look at the marks"):
            if self._directory.is_local:
                return shard_size(self._shards[file]) == self.index.files[file].size_bytes
            if not chunks or not self._believes():
                return not chunks
            marks = read_marks(self._directory.map(file), chunks.start, chunks.stop)
        return marks.count(PRESENT) == len(chunks)

    def want(self, file: int, begin: int, end: int) -> None:
        """Ask whoever fetches for these bytes before others. Raises StoreError."""
        chunks = self.index.layouts[file].covering(begin, end)
        if chunks and not self._directory.is_local:
            with explained("ask for bytes"):
                append_demand(self._directory.wanted, file, chunks)

    def wait_for(self, file: int, begin: int, end: int, *, patience_seconds: float = 30.0) -> None:
        """Return when bytes `begin` to `end` (not included) of a shard are there, checked; demand them until then.

        Raises FetchFailed when whoever fetched left word of a failure, or when nobody has been fetching for
        `patience_seconds`; StoreDamaged when the shard is shorter than it must be; StoreError.
        """
        path = self.index.files[file].path
        patience = _Patience(self, patience_seconds, f"{path}: bytes {begin} to {end} are missing")
        while not self.is_present(file, begin, end):
            if self._directory.is_local:
                raise StoreDamaged(f"{path} has another size than when it was looked at first")
            if patience.should_demand():
                self.want(file, begin, end)
            patience.wait(is_there=lambda: self.is_present(file, begin, end))
        self._check_size(file)

    def wait_until_proven(self, *, patience_seconds: float = 30.0) -> None:
        """Return when the bytes are checked as far as they will be before they are used.

        Where only whole files have digests that is when all of them are complete, or were once and what is missing
        since is bound to what they were. Raises DigestMismatch when bytes that were there since this reader came have
        proved wrong: it may have read them, even if the right ones have come since. Raises what `wait_for` does.
        """
        if self._directory.is_local:
            return
        if self.index.trust is Trust.FILE:
            patience = _Patience(self, patience_seconds, "the model is not complete, so its files cannot be checked")
            while not self._is_proven():
                patience.wait(is_there=self._is_proven)
        self._check_doubts()

    def close(self) -> None:
        """Give the lease back."""
        self._lease.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _believes(self) -> bool:
        """Nobody believes marks from before a restart until a writer has looked at the bytes."""
        if not self._believed:
            self._believed = is_believable(self._directory.read_status())
        return self._believed

    def _is_proven(self) -> bool:
        self._check_doubts()
        with explained("read the model's status"):
            return self._directory.read_status().proven

    def _check_doubts(self) -> None:
        with explained("read the model's status"):
            if self._directory.read_status().num_doubts != self._num_doubts:
                raise DigestMismatch(f"bytes of {self._model.key} that were read have proved wrong; load it again")

    def _check_size(self, file: int) -> None:
        expected = self.index.files[file]
        with explained(f"look at {expected.path}"):
            size = shard_size(self._shards[file])
        if size is None or size < expected.size_bytes:
            raise StoreDamaged(f"{expected.path} has {size or 0} bytes of {expected.size_bytes}: somebody cut it off")

    def nobody_fetches(self) -> bool:
        """Whether no process holds the fetch lock. Raises StoreError."""
        with explained("look for who fetches"):
            return not is_held(self._directory.path / FETCH_LOCK, Hold.SHARED)

    def failure(self, *, old: bool) -> FetchFailed | None:
        """What the last fetch ended with; `old`: even if that was before this reader came. Raises StoreError."""
        with explained("read why the fetch failed"):
            if not old and _failure_mark(self._directory) == self._old_failure:
                return None
            failure = read_failure(self._directory)
        return None if failure is None else FetchFailed(failure.message)


class _Patience:
    """How long one wait goes on."""

    def __init__(self, reader: ModelReader, seconds: float, what: str) -> None:
        self._reader = reader
        self._seconds = seconds
        self._what = what
        self._alone_since: float | None = None
        self._demand_due = 0.0

    def should_demand(self) -> bool:
        """At first and then every DEMAND_AGAIN_SECONDS: the log may have been cut meanwhile."""
        now = time.monotonic()
        due = now >= self._demand_due
        if due:
            self._demand_due = now + DEMAND_AGAIN_SECONDS
        return due

    def wait(self, *, is_there: Callable[[], bool]) -> None:
        """Sleep a little. Raises FetchFailed when there is nothing to wait for any more."""
        if not self._reader.nobody_fetches():
            self._alone_since = None
        else:
            now = time.monotonic()
            self._alone_since = self._alone_since or now
            error = self._reason(now - self._alone_since)
            # Bytes come before the lock is given back: so look once more.
            if error is not None and not is_there():
                raise error
        time.sleep(POLL_SECONDS)

    def _reason(self, alone_seconds: float) -> FetchFailed | None:
        over = alone_seconds >= self._seconds
        failure = self._reader.failure(old=over or alone_seconds >= OLD_FAILURE_SECONDS)
        if failure is None and over:
            return FetchFailed(f"{self._what}, and nobody has been fetching them for {self._seconds:g} s")
        return failure


def _failure_mark(directory: ModelDirectory) -> tuple[int, int] | None:
    try:
        status = directory.failure.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
