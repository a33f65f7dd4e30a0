"""One published model: what it is, who uses it, and the ways to write, read and check it.

Holds no descriptors and no locks by itself; `lease`, `writer` and `reader` return what does. What is asked of a model
that was removed meanwhile raises ModelNotFound.
"""

import contextlib
import os
from pathlib import Path

from headrace_models.errors import ModelBusy, StoreUnusable
from headrace_models.seek_index import SeekIndex
from headrace_models.store.integrity import IntegrityReport, OnProgress, check_model
from headrace_models.store.locks import FileLock, Hold, wait_lock
from headrace_models.store.model_directory import (
    FETCH_LOCK,
    INDEX,
    LEASE_LOCK,
    PIN,
    ModelDirectory,
    missing,
    removed,
    try_alone,
)
from headrace_models.store.model_reader import ModelReader
from headrace_models.store.model_writer import ModelWriter
from headrace_models.store.refusals import explained
from headrace_models.store.store_status import StoreStatus, status_of


class StoredModel:
    """A model in the store. May be used from many threads."""

    def __init__(self, directory: ModelDirectory) -> None:
        """Raises ModelNotFound where the directory is gone, OSError."""
        self._directory = directory
        self._identity = _identity(directory.path)

    @property
    def key(self) -> str:
        """The name of its directory, unique in the store."""
        return self._directory.path.name

    @property
    def directory(self) -> Path:
        """Where the store keeps it."""
        return self._directory.path

    @property
    def skeleton(self) -> Path:
        """Everything that an engine needs but the weights."""
        return self._directory.skeleton

    @property
    def index(self) -> SeekIndex:
        """The seek index, read when first asked for. Raises StoreDamaged, StoreUnusable."""
        with explained(f"read the index of {self.key}"):
            return self._directory.index

    @property
    def reference(self) -> str:
        """What it was fetched as."""
        return self._directory.record.reference

    @property
    def revision(self) -> str:
        """Which state of it."""
        return self._directory.record.revision

    @property
    def is_local(self) -> bool:
        """Whether its shards lie in a directory that is not the store's."""
        return self._directory.is_local

    def shard_path(self, file: int) -> Path:
        """Where shard number `file` is. Raises what `index` does."""
        with explained(f"read the index of {self.key}"):
            return self._directory.shard(file)

    def lease(self) -> FileLock:
        """Keep the model from being evicted and removed until the lease is closed; it counts as used now.

        Waits while it is being evicted from or removed. Raises ModelNotFound when it is gone then, StoreUnusable.
        """
        with contextlib.ExitStack() as held, explained(f"take a lease of {self.key}"):
            lease = held.enter_context(self._stay())
            lease.touch()
            held.pop_all()
            return lease

    def _stay(self) -> FileLock:
        """A lease that is no use."""
        path = self.directory / LEASE_LOCK
        with contextlib.ExitStack() as held:
            try:
                lease = held.enter_context(wait_lock(path, Hold.SHARED, while_waiting=lambda: None))
            except (FileNotFoundError, NotADirectoryError) as error:
                raise removed(self.directory) from error
            if not lease.is_of(path) or _identity(self.directory) != self._identity:
                raise removed(self.directory)
            held.pop_all()
            return lease

    def status(self) -> StoreStatus:
        """How it stands at this moment. Raises StoreError, ModelNotFound."""
        with explained(f"look at {self.key}"):
            _identity(self.directory)
            return status_of(self._directory)

    def writer(self) -> ModelWriter:
        """Become the one who writes it; makes every mark true first, which after a restart of the machine in the middle
        of a fetch reads all that was marked.

        Raises ModelBusy when somebody else writes, evicts or removes it; ModelNotFound; StoreError: a local model is
        never written.
        """
        if self.is_local:
            raise StoreUnusable(f"{self.reference} is used where it is: nothing is fetched")
        with contextlib.ExitStack() as held, explained(f"write {self.key}"):
            lock = held.enter_context(self._fetch_lock())
            os.utime(self.directory / LEASE_LOCK)
            writer = ModelWriter(self._directory, lock)
            held.pop_all()
            return writer

    def reader(self) -> ModelReader:
        """Read it while it arrives, under a lease. Raises what `lease` and `index` do."""
        with contextlib.ExitStack() as held, explained(f"read {self.key}"):
            lease = held.enter_context(self.lease())
            self._directory.index  # noqa: B018
            reader = ModelReader(self, self._directory, lease)
            held.pop_all()
            return reader

    def set_pin(self, *, pinned: bool) -> None:
        """Never evict it, or allow that again; it can still be removed by name. Raises ModelNotFound, StoreError."""
        with explained(f"pin {self.key}"):
            _identity(self.directory)
            if pinned:
                (self.directory / PIN).touch()
            else:
                (self.directory / PIN).unlink(missing_ok=True)

    def check_integrity(
        self, *, repair: bool = True, on_progress: OnProgress = lambda _checked, _total: None
    ) -> IntegrityReport:
        """Read and check every byte that is there; drop what is wrong if `repair`.

        `on_progress` gets the bytes looked at and all that will be. Raises ModelBusy when `repair` and somebody fetches
        it; ModelNotFound; StoreError.
        """
        with contextlib.ExitStack() as held, explained(f"check {self.key}"):
            held.enter_context(self._stay())
            if repair and not self.is_local:
                held.enter_context(self._fetch_lock())
            return check_model(self._directory, repair=repair, on_progress=on_progress)

    def _fetch_lock(self) -> FileLock:
        lock = try_alone(self.directory, FETCH_LOCK)
        if lock is None:
            raise ModelBusy(f"{self.key} is being fetched or evicted by another process")
        if _identity(self.directory) != self._identity:
            lock.close()
            raise removed(self.directory)
        return lock


def _identity(path: Path) -> tuple[int, int, int]:
    """Tells a model from another one that was published under the same key after it was removed."""
    try:
        status = (path / INDEX).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path, INDEX) from error
    return status.st_ino, status.st_mtime_ns, status.st_size
