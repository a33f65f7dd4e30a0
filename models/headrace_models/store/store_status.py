"""What can be said of a model in the store at one moment, without reading its bytes."""

from collections.abc import Iterable
from dataclasses import dataclass

from headrace_models.errors import StoreDamaged
from headrace_models.store.checking import shard_size
from headrace_models.store.chunk_map import PRESENT
from headrace_models.store.files import read_record
from headrace_models.store.locks import Hold, is_held
from headrace_models.store.model_directory import FETCH_LOCK, LEASE_LOCK, PIN, ModelDirectory, count_by_group
from headrace_models.store.records import Failure
from headrace_models.store.recovery import is_believable
from headrace_models.store.space import allocated_bytes
from headrace_models.trust import Trust

HEADERS = "headers"


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """A model at one moment.

    `present_by_group` is (group, present bytes, all bytes) in execution order, the shards' headers first as HEADERS;
    `allocated_bytes` is what its directory takes on disk. `complete`: every chunk is there and can be believed;
    `in_doubt`: the machine was restarted in the middle of a fetch, and the next writer looks at every byte first.
    `trust` is what may be claimed now: FILE while bytes are missing says how they will be checked before the model is
    complete. `last_used` is seconds since the epoch; `failure` is why the last fetch ended, if it failed.
    """

    total_bytes: int
    present_bytes: int
    present_by_group: tuple[tuple[str, int, int], ...]
    allocated_bytes: int
    complete: bool
    in_doubt: bool
    sealed: bool
    proven: bool
    trust: Trust
    last_used: float
    leased: bool
    fetching: bool
    pinned: bool
    failure: str | None


def status_of(model: ModelDirectory) -> StoreStatus:
    """Raises StoreDamaged where the index cannot be read, OSError."""
    groups = _local_groups(model) if model.is_local else _groups(model)
    present, total = sum(group[1] for group in groups), model.index.weight_bytes
    status = model.read_status()
    in_doubt = not model.is_local and not is_believable(status)
    complete = present == total and not in_doubt
    return StoreStatus(
        total_bytes=total,
        present_bytes=present,
        present_by_group=groups,
        allocated_bytes=allocated_bytes(model.path),
        complete=complete,
        in_doubt=in_doubt,
        sealed=status.sealed,
        proven=status.proven,
        trust=_trust(model, ready=complete, proven=status.proven),
        last_used=last_used(model),
        leased=is_held(model.path / LEASE_LOCK, Hold.EXCLUSIVE),
        fetching=is_held(model.path / FETCH_LOCK, Hold.EXCLUSIVE),
        pinned=(model.path / PIN).exists(),
        failure=_failure(model),
    )


def last_used(model: ModelDirectory) -> float:
    """When somebody last took a lease or fetched, in seconds since the epoch; 0 where that is unknown."""
    try:
        return (model.path / LEASE_LOCK).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def read_failure(model: ModelDirectory) -> Failure | None:
    """Why the last fetch failed; a damaged record is none. Raises OSError."""
    try:
        data = read_record(model.failure)
        return None if data is None else Failure.from_json(data)
    except StoreDamaged:
        return None


def _trust(model: ModelDirectory, *, ready: bool, proven: bool) -> Trust:
    if model.is_local:
        return model.record.trust or Trust.NONE
    if model.index.trust is Trust.FILE and ready and not proven:
        return Trust.NONE
    return model.index.trust


def _failure(model: ModelDirectory) -> str | None:
    failure = read_failure(model)
    return None if failure is None else failure.message


def _groups(model: ModelDirectory) -> tuple[tuple[str, int, int], ...]:
    return _counted(model, (model.marks(file) for file in range(len(model.index.files))))


def _local_groups(model: ModelDirectory) -> tuple[tuple[str, int, int], ...]:
    """A local shard is all there or, with another size than it had, not to be used at all."""
    index = model.index
    fits = (shard_size(model.shard(number)) == file.size_bytes for number, file in enumerate(index.files))
    marks = (bytes([fit]) * len(layout) for fit, layout in zip(fits, index.layouts, strict=True))
    return _counted(model, marks)


def _counted(model: ModelDirectory, marks: Iterable[bytes]) -> tuple[tuple[str, int, int], ...]:
    present = [_present(model, file, of_file) for file, of_file in enumerate(marks)]
    names = (HEADERS, *model.index.groups)
    return tuple(zip(names, _summed(present, names), _summed(model.bytes_by_group, names), strict=True))


def _present(model: ModelDirectory, file: int, marks: bytes) -> tuple[int, ...]:
    """Mostly a shard is all there or not begun: then nothing is counted chunk by chunk."""
    num_present = marks.count(PRESENT)
    if num_present == len(marks):
        return model.bytes_by_group[file]
    chunks = (chunk for chunk, mark in enumerate(marks) if mark == 1) if num_present else ()
    return count_by_group(model.index.layouts[file], chunks, len(model.index.groups))


def _summed(counts: Iterable[tuple[int, ...]], names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*counts, strict=True))) or (0,) * len(names)
