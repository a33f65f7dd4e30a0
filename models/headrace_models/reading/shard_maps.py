"""Memory maps of a model's shards: one per shard, made when it is first needed, private as safetensors makes them.

A map is writable in memory and never writes to the file, so that torch takes it as it is. It shows zeros where bytes
have not come; whoever slices it has waited for them. Every slice keeps its map alive, also after `close`, but only a
lease keeps the bytes below it: a model that is evicted reads as zeros. Sizes are checked before mapping, since reading
a map beyond the end of its file kills the process.
"""

import mmap
import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from headrace_models.errors import StoreDamaged

if TYPE_CHECKING:
    from headrace_models.store.stored_model import StoredModel

_DONTNEED: int | None = getattr(mmap, "MADV_DONTNEED", None)


def open_shard(model: "StoredModel", file: int) -> int:
    """A descriptor for reading a shard; raises StoreDamaged when it is missing or has another size than indexed."""
    shard = model.index.files[file]
    try:
        descriptor = os.open(model.shard_path(file), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreDamaged(f"{shard.path} of {model.reference} cannot be read: {error.strerror}") from error
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes != shard.size_bytes:
        os.close(descriptor)
        raise StoreDamaged(f"{shard.path} of {model.reference} has {size_bytes} bytes, not {shard.size_bytes}")
    return descriptor


class ShardMaps:
    """The maps of one model's shards, by number. Safe for threads."""

    def __init__(self, model: "StoredModel") -> None:
        self._model = model
        self._maps: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()

    def view(self, file: int, begin: int, end: int) -> memoryview:
        """Bytes `begin` to `end` (not included) of a shard, without a copy; raises StoreDamaged."""
        with self._lock:
            mapped = self._maps.get(file)
            if mapped is None:
                mapped = self._maps[file] = self._map(file)
        return memoryview(mapped)[begin:end]

    def release(self, ranges: Iterable[tuple[int, int, int]]) -> None:
        """Give back the memory of (shard, begin, end) ranges; what is read again comes from the file again.

        Whole pages inside a range only. Changes that somebody made to the bytes in memory are lost with them. Does
        nothing where the system cannot.
        """
        if _DONTNEED is None:
            return
        for file, begin, end in ranges:
            first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
            last = end // mmap.PAGESIZE * mmap.PAGESIZE
            with self._lock:
                mapped = self._maps.get(file)
            if mapped is not None and first < last:
                mapped.madvise(_DONTNEED, first, last - first)

    def close(self) -> None:
        """Forget the maps; each goes with the last slice of it."""
        with self._lock:
            self._maps.clear()

    def _map(self, file: int) -> mmap.mmap:
        descriptor = open_shard(self._model, file)
        try:
            return mmap.mmap(descriptor, self._model.index.files[file].size_bytes, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)
