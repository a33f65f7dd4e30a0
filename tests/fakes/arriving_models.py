"""A checkpoint as a model in a store whose bytes come when a test lets them, from the original files."""

import shutil
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Self

from headrace_models.digest import sha256_of_file
from headrace_models.index_building import index_of_directory
from headrace_models.reading.header_files import write_header_files
from headrace_models.seek_index import SeekIndex
from headrace_models.sources.base import FileRange, Proof
from headrace_models.store.model_store import ModelStore
from headrace_models.store.model_writer import ModelWriter
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust

REFERENCE = "hf://tests/arriving"
IDLE_SECONDS = 0.002


def publish_empty(original: Path, cache_dir: Path, *, trust: Trust = Trust.CHUNK) -> StoredModel:
    """The model in `original` in the store below `cache_dir`: its skeleton complete, no byte of its shards."""
    index = indexed(original, trust)
    shards = {file.path for file in index.files}
    with ModelStore(cache_dir).draft(index.reference, index.revision) as draft:
        shutil.copytree(original, draft.skeleton, ignore=lambda _, names: shards & set(names), dirs_exist_ok=True)
        write_header_files(index, draft.skeleton)
        return draft.publish(index)


def indexed(original: Path, trust: Trust = Trust.CHUNK) -> SeekIndex:
    """An index that allows so much trust."""
    index = index_of_directory(original, REFERENCE, digests=trust is Trust.CHUNK)
    if trust is not Trust.FILE:
        return index
    proofs = tuple(
        Proof(sha256_of_file(original / file.path), (FileRange(file.path, 0, file.size_bytes),)) for file in index.files
    )
    return replace(index, proofs=proofs)


class ArrivingModel:
    """The one who writes a model; a context manager that ends all of it. `brought` are the (shard, chunk) that came,
    in their order."""

    def __init__(self, stored: StoredModel, original: Path) -> None:
        self.stored = stored
        self.writer: ModelWriter = stored.writer()
        self.brought: list[tuple[int, int]] = []
        self._original = original
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="bring-demanded-chunks")

    def bring(self, chunks: Iterable[tuple[int, int]]) -> None:
        """Put (shard, chunk) now."""
        for file, chunk in chunks:
            begin, end = self.stored.index.layouts[file].range_of(chunk)
            with (self._original / self.stored.index.files[file].path).open("rb") as shard:
                shard.seek(begin)
                self.writer.put(file, chunk, shard.read(end - begin))
            self.brought.append((file, chunk))

    def bring_all(self) -> None:
        """Put whatever is missing."""
        self.bring(self.writer.missing())

    def bring_on_demand(self) -> None:
        """From now on put what readers demand, and nothing else, in a thread."""
        self._thread.start()

    def demanded(self) -> set[tuple[int, int]]:
        """The (shard, chunk) that readers have demanded since the last call."""
        return {(file, chunk) for file, chunks in self.writer.take_wanted() for chunk in chunks}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()
        self.writer.close()

    def _serve(self) -> None:
        while not self._is_over.wait(IDLE_SECONDS):
            self.bring(sorted(part for part in self.demanded() if not self.writer.is_present(*part)))
