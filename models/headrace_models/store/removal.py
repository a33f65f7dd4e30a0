"""Taking models away, whole or from their end, never from under anybody.

Only tries for locks, in the order of `locks`, and gives up with ModelBusy when one is held. A whole model gets another
name first and is deleted then: nobody finds half of one, and what a dead process did not finish is swept by key.
"""

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from headrace_models.errors import ModelBusy
from headrace_models.publication import temporary_sibling
from headrace_models.store.chunk_map import ABSENT, absent_runs, write_mark
from headrace_models.store.locks import FileLock, Hold, try_lock
from headrace_models.store.model_directory import FETCH_LOCK, LEASE_LOCK, ModelDirectory, try_alone
from headrace_models.store.recovery import unseal
from headrace_models.store.space import allocated_bytes, punch_hole


def key_lock(models: Path, key: str) -> Path:
    """The lock under which a key is published and removed."""
    return models / f".{key}.lock"


@contextlib.contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Hold a model that nobody else fetches, reads or removes. Raises ModelBusy, ModelNotFound, OSError."""
    with contextlib.ExitStack() as held:
        _take(held, try_alone(path, FETCH_LOCK), f"{path.name} is being fetched")
        _take(held, try_alone(path, LEASE_LOCK), f"{path.name} is in use")
        yield


def take_away(models: Path, key: str) -> int:
    """Remove a model, damaged or not; returns the bytes that it took. Raises ModelBusy, ModelNotFound, OSError."""
    path = models / key
    with contextlib.ExitStack() as held:
        _take(held, try_lock(key_lock(models, key), Hold.EXCLUSIVE), f"{key} is being prepared or removed")
        held.enter_context(alone_with(path))
        freed_bytes = allocated_bytes(path)
        with temporary_sibling(path, name=key) as trash:
            path.rename(trash / "removed")
    return freed_bytes


def trim(model: ModelDirectory, num_chunks: int) -> bool:
    """Drop the last `num_chunks` chunks, in execution order, of those that are there, and give back every block that
    nothing marked uses; False where the file system cannot do that. The caller is `alone_with` it. Raises OSError.

    A crash leaves at worst blocks that nothing marked uses; the next trim gives them back.
    """
    unseal(model, model.read_status())
    for file, chunk in islice(tail(model), num_chunks):
        write_mark(model.map(file), chunk, ABSENT)
    return all(_punch(model, file) for file in range(len(model.index.files)))


def tail(model: ModelDirectory) -> Iterator[tuple[int, int]]:
    """(shard, chunk) of what is there, what is used last first."""
    return reversed(list(model.present_in_order()))


def _punch(model: ModelDirectory, file: int) -> bool:
    layout = model.index.layouts[file]
    runs = absent_runs(model.marks(file))
    ranges = [(layout.range_of(run.start)[0], layout.range_of(run.stop - 1)[1]) for run in runs]
    return all(punch_hole(model.shard(file), begin, end) for begin, end in ranges)


def _take(held: contextlib.ExitStack, lock: FileLock | None, why_not: str) -> None:
    if lock is None:
        raise ModelBusy(why_not)
    held.enter_context(lock)
