"""A model on its way to its name: filled by its maker, then published in one step, complete or not at all.

Published is everything but the weights: index, record, skeleton, sparse shards without a byte in them, maps that say
so. All of it is on disk before the directory gets its name (`publication`), so neither a kill nor a power loss leaves
half of one. The caller holds the key's lock.
"""

import os
from pathlib import Path

from headrace_models.publication import publish
from headrace_models.seek_index import SeekIndex
from headrace_models.store.boot import current_boot_id
from headrace_models.store.chunk_map import DIGEST_BYTES
from headrace_models.store.files import write_at
from headrace_models.store.model_directory import FETCH_LOCK, INDEX, LEASE_LOCK, RECORD, ModelDirectory
from headrace_models.store.records import Record, Status
from headrace_models.store.refusals import explained
from headrace_models.store.removal import alone_with
from headrace_models.store.reservation import NOTHING
from headrace_models.store.space import make_allocated, make_sparse
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust


class Draft:
    """Made by `ModelStore.draft`. `existing` is the model if somebody published it while the lock was waited for: then
    there is nothing to fill, and `publish` returns it."""

    def __init__(self, path: Path, public: Path, identity: tuple[str, str], existing: StoredModel | None) -> None:
        self._path = path
        self._public = public
        self._reference, self._revision = identity
        self.existing = existing

    @property
    def skeleton(self) -> Path:
        """An empty directory for everything that an engine needs but the weights."""
        return self._path / "skeleton"

    def publish(self, index: SeekIndex, *, directory: Path | None = None, trust: Trust | None = None) -> StoredModel:
        """Give the model its name.

        `directory`: the shards stay there, and nothing of them is ever fetched or changed; `trust` is what is known of
        those, NONE where it is not said. Raises StoreError; ModelBusy when a damaged model of this name is in use.
        """
        if self.existing is not None:
            return self.existing
        record = Record(self._reference, self._revision, directory and directory.absolute(), trust)
        draft = ModelDirectory(self._path, record)
        with explained(f"publish {self._public.name}"):
            _write_new(draft.path / RECORD, record.to_json())
            _write_new(draft.path / INDEX, index.to_json())
            draft.state.mkdir()
            _write_new(draft.state / "status.json", Status(current_boot_id()).to_json())
            for name in (FETCH_LOCK, LEASE_LOCK):
                _write_new(draft.path / name, b"")
            if directory is None:
                _make_empty(draft, index)
            self._rename()
            self.existing = StoredModel(ModelDirectory(self._public, record))
        return self.existing

    def _rename(self) -> None:
        if not self._public.exists():
            publish(self._path, self._public, name=self._public.name)
            return
        with alone_with(self._public):  # it is damaged, or it would be `existing`
            publish(self._path, self._public, name=self._public.name)


def _make_empty(draft: ModelDirectory, index: SeekIndex) -> None:
    """Shards of which nothing is there yet."""
    _write_new(draft.reserved, NOTHING)
    for number, (file, layout) in enumerate(zip(index.files, index.layouts, strict=True)):
        shard = draft.path / "shards" / file.path
        shard.parent.mkdir(parents=True, exist_ok=True)
        make_sparse(shard, file.size_bytes)
        make_allocated(draft.map(number), len(layout))
        if file.chunk_digests is None:
            make_allocated(draft.digests(number), len(layout) * DIGEST_BYTES)


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        write_at(descriptor, data, 0)
    finally:
        os.close(descriptor)
