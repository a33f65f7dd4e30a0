"""The one who may write a model's chunks: checked, written, recorded, marked, in that order.

Holds `fetch.lock`, so that there is one per model among all processes; its methods may be called from many threads.
Hashing runs side by side; of the rest only what concerns the same chunk waits for each other, so that two answers for
one chunk cannot mix. No descriptors are kept open, and a write after `close` is refused. Invariant: a marked chunk has
the digest that the index knows or that was recorded of it, whatever dies when (`recovery` has the argument).
"""

import contextlib
import hashlib
import threading
from collections.abc import Sequence
from typing import Self

from headrace_models.chunk_layout import ChunkLayout
from headrace_models.errors import DigestMismatch, ModelError, StoreDamaged, StoreError
from headrace_models.seek_index import SeekIndex
from headrace_models.sources.base import Proof
from headrace_models.store.boot import current_boot_id
from headrace_models.store.checking import Proving, has_its_sizes, needed_proofs
from headrace_models.store.chunk_map import PRESENT, read_digest, write_digest, write_mark
from headrace_models.store.demand_log import DemandLog
from headrace_models.store.files import flush, replace_file, write_part
from headrace_models.store.locks import FileLock
from headrace_models.store.model_directory import ModelDirectory
from headrace_models.store.records import Failure, Status
from headrace_models.store.recovery import NOT_THIS_BOOT, forget, recover
from headrace_models.store.refusals import explained
from headrace_models.store.reservation import reserve
from headrace_models.trust import Trust

_NUM_STRIPES = 64


class ModelWriter:
    """Made by `StoredModel.writer`, which has taken the lock."""

    def __init__(self, model: ModelDirectory, lock: FileLock) -> None:
        """Takes over `lock` and makes every mark true. Raises OSError, after which the lock is still the caller's."""
        self._model = model
        self._status = recover(model)
        self._marks = [bytearray(model.marks(file)) for file in range(len(model.index.files))]
        self._demands = DemandLog(model.wanted, model.index)
        self._stripes = tuple(threading.Lock() for _ in range(_NUM_STRIPES))
        self._status_guard = threading.Lock()
        self._proving = threading.Lock()
        self._proofs = self._begin_proofs()
        self._closed = False
        self._lock = lock

    @property
    def index(self) -> SeekIndex:
        """The model's seek index."""
        return self._model.index

    def is_present(self, file: int, chunk: int) -> bool:
        """Whether a chunk is there, checked."""
        return self._marks[file][chunk] == 1

    def missing(self) -> Sequence[tuple[int, int]]:
        """(shard, chunk) of what is not there, in execution order."""
        return [(file, chunk) for file, chunk in self.index.chunks_in_order() if not self.is_present(file, chunk)]

    def is_complete(self) -> bool:
        """Whether every chunk is there."""
        return all(marks.count(1) == len(marks) for marks in self._marks)

    def put(self, file: int, chunk: int, data: bytes | memoryview) -> None:
        """Keep a chunk, if its bytes are right; nothing happens when it is there already.

        `data` is read before this returns and not kept. Raises DigestMismatch (nothing is written then): the chunk has
        another length or digest than the index states, or than what was once sealed had; NoSpace; StoreUnusable;
        StoreDamaged: a file is gone.
        """
        begin, end = self._layout(file).range_of(chunk)
        if memoryview(data).nbytes != end - begin:
            raise DigestMismatch(f"{self._name(file, chunk)} has {memoryview(data).nbytes} bytes, not {end - begin}")
        if self.is_present(file, chunk):
            return
        digest = hashlib.sha256(data).digest()
        with self._stripes[(file * 31 + chunk) % _NUM_STRIPES]:
            if not self.is_present(file, chunk):
                self._keep(file, chunk, data, digest)

    def _keep(self, file: int, chunk: int, data: bytes | memoryview, digest: bytes) -> None:
        self._check_open()
        with explained(f"keep {self._name(file, chunk)}"):
            record = self._compare(file, chunk, digest)
            write_part(self._model.shard(file), data, self._layout(file).range_of(chunk)[0])
            if record:
                write_digest(self._model.digests(file), chunk, digest)
            write_mark(self._model.map(file), chunk, PRESENT)
        self._marks[file][chunk] = 1

    def _compare(self, file: int, chunk: int, digest: bytes) -> bool:
        """Check a digest against the one that it must be; True where there was none that binds, so it is recorded."""
        known = self.index.files[file].chunk_digests
        if known is not None:
            if digest.hex() != known[chunk].hex:
                raise DigestMismatch(f"{self._name(file, chunk)} has another digest than the index states")
            return False
        if not self._status.bound:
            return True
        recorded = read_digest(self._model.digests(file), chunk)
        if recorded is None:
            self._change_status(proven=False)
        elif recorded != digest:
            raise DigestMismatch(
                f"{self._name(file, chunk)} has another digest than when it was fetched first; headrace rm starts again"
            )
        return recorded is None

    def take_wanted(self) -> tuple[tuple[int, range], ...]:
        """(shard, chunks) that readers demanded since the last call; one thread calls this. Raises StoreError."""
        with explained("read what is wanted"):
            return self._demands.take()

    def drop(self, file: int) -> None:
        """Forget a whole shard, whose bytes proved wrong. Raises StoreError."""
        with contextlib.ExitStack() as held, explained(f"forget {self.index.files[file].path}"):
            for stripe in self._stripes:
                held.enter_context(stripe)
            self._check_open()
            # Nothing binds any more: digests recorded of wrong bytes would refuse the right ones for ever.
            # And readers that have come meanwhile have read them; who comes now believes no mark until they are gone.
            self._change_status(boot_id=NOT_THIS_BOOT, sealed=False, proven=False, bound=False, doubted=True)
            forget(self._model, file)
            self._marks[file][:] = bytes(len(self._marks[file]))
            with self._proving:
                self._proofs = self._begin_proofs()
            self._change_status()

    def seal(self) -> None:
        """Check the proofs, flush everything, and say that the model is complete.

        Reads what only a proof vouches for and `advance_proofs` has not come to, unless it was proven before and then
        partly evicted: what was fetched again had the digests of then. Raises DigestMismatch when a proof does not
        hold, after the shards of it were forgotten; StoreDamaged when a file has another size than it should;
        StoreError when chunks are missing.
        """
        self._check_open()
        if self._status.sealed:
            return
        if not self.is_complete():
            raise StoreError(f"{self._model.path.name} cannot be sealed: chunks are missing")
        with explained(f"seal {self._model.path.name}"):
            self._check_sizes()
            if not self._status.proven:
                self._check_proofs()
            self._flush()
            self._change_status(sealed=True, proven=self.index.trust is not Trust.NONE, bound=True)

    def advance_proofs(self) -> bool:
        """Hash one more piece of what only a proof vouches for, while the rest is still coming, so that `seal` need not
        read everything; False when there is nothing to be done now. Raises StoreError."""
        if self._status.proven:
            return False
        with self._proving, explained(f"check {self._model.path.name}"):
            return any(proving.advance(is_there=self._is_there) for proving in self._proofs)

    def _is_there(self, file: int, begin: int, end: int) -> bool:
        return all(self.is_present(file, chunk) for chunk in self._layout(file).covering(begin, end))

    def _begin_proofs(self) -> tuple[Proving, ...]:
        return tuple(Proving(self._model, proof) for proof in needed_proofs(self.index))

    def _check_sizes(self) -> None:
        for number, file in enumerate(self.index.files):
            if not has_its_sizes(self._model, number):
                raise StoreDamaged(f"{file.path}, or what is kept of its chunks, has another size than it was given")

    def _check_proofs(self) -> None:
        while self.advance_proofs():
            continue
        failed = [proving.proof for proving in self._proofs if not proving.holds()]
        if not failed:
            return
        paths = set().union(*(proof.paths for proof in failed))
        for number, file in enumerate(self.index.files):
            if file.path in paths:
                self.drop(number)
        raise DigestMismatch(f"{_listed(failed)} not what the source states; what was fetched of it is dropped")

    def _flush(self) -> None:
        for file in range(len(self.index.files)):
            flush(self._model.shard(file))
            flush(self._model.map(file))
            if self._model.keeps_digests(file):
                flush(self._model.digests(file))
        flush(self._model.state)

    def reserve(self, needed_bytes: int) -> None:
        """Say how many bytes are still to come, beyond what is allocated now; counts as used while the lock is held.

        Raises StoreError.
        """
        with explained("reserve room"):
            reserve(self._model, needed_bytes)

    def fail(self, error: ModelError) -> None:
        """Leave word for readers why the bytes do not come. A disk that has no room even for that is no second error:
        they give up when their patience ends."""
        with contextlib.suppress(OSError):
            replace_file(self._model.failure, Failure.of(error).to_json())

    def clear_failure(self) -> None:
        """Forget the failure of the last fetch. Raises StoreError."""
        with explained("begin a fetch"):
            self._model.failure.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock, once writes under way are through."""
        with contextlib.ExitStack() as held:
            for stripe in self._stripes:
                held.enter_context(stripe)
            if not self._closed:
                self._closed = True
                self._demands.clear()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _change_status(
        self,
        *,
        boot_id: str | None = None,
        sealed: bool | None = None,
        proven: bool | None = None,
        bound: bool | None = None,
        doubted: bool = False,
    ) -> None:
        with self._status_guard:
            was = self._status
            status = Status(
                current_boot_id() if boot_id is None else boot_id,
                was.sealed if sealed is None else sealed,
                was.proven if proven is None else proven,
                was.bound if bound is None else bound,
                was.num_doubts + doubted,
            )
            if status != was:
                self._model.write_status(status)
                self._status = status

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self._model.path.name}: the writer is closed")

    def _layout(self, file: int) -> ChunkLayout:
        return self.index.layouts[file]

    def _name(self, file: int, chunk: int) -> str:
        return f"chunk {chunk} of {self.index.files[file].path}"


def _listed(proofs: Sequence[Proof]) -> str:
    paths = sorted(set().union(*(proof.paths for proof in proofs)))
    return f"{paths[0]} is" if len(paths) == 1 else f"{', '.join(paths[:5])}{' and others' * (len(paths) > 5)} are"
