"""Does a model on disk still hold what was checked when it was written? Reads every byte that is there.

Structure first (sizes, marks that a sealed model must have), then each marked chunk against the digest known or
recorded, then the proofs. What is wrong can be dropped, so that the next fetch brings it again; files of a local model
are looked at and never changed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from headrace_models.sources.base import FileRange
from headrace_models.store.checking import (
    chunk_is_right,
    has_its_sizes,
    needed_proofs,
    proof_holds,
    shard_size,
    wrong_chunks,
)
from headrace_models.store.model_directory import ModelDirectory
from headrace_models.store.recovery import believe, doubt, forget, is_believable, restore_sizes, unmark

# Bytes looked at, and all that are to be looked at.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """What was looked at and what is wrong with it.

    `wrong_sizes`: shards that have, or whose marks or digests have, another size than they should. `wrong_chunks`:
    (shard, chunk) whose bytes are wrong, or that a sealed model lacks. `unproven`: paths of shards that together do not
    have the digest that the source states. `repaired`: all of that was dropped.
    """

    checked_bytes: int
    wrong_sizes: tuple[str, ...]
    wrong_chunks: tuple[tuple[int, int], ...]
    unproven: tuple[str, ...]
    repaired: bool

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.wrong_sizes or self.wrong_chunks or self.unproven)


def check_model(model: ModelDirectory, *, repair: bool, on_progress: OnProgress) -> IntegrityReport:
    """Look at everything; with `repair`, which needs `fetch.lock`, drop what is wrong. Raises OSError."""
    count = _Counter(_bytes_to_check(model), on_progress)
    if model.is_local:
        return _check_local(model, count)
    resized = [file for file in range(len(model.index.files)) if not has_its_sizes(model, file)]
    lacking = _lacking(model)
    wrong = tuple(wrong_chunks(model, on_bytes=count.add))
    unproven = _unproven(model, count) if model.is_full() and not (resized or wrong) else ()
    paths = tuple(model.index.files[file].path for file in resized)
    report = IntegrityReport(count.done, paths, lacking + wrong, unproven, repaired=False)
    if not repair or (report.is_sound and is_believable(model.read_status())):
        return report
    _repair(model, resized, wrong, unproven)
    return replace(report, repaired=not report.is_sound)


class _Counter:
    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self.done = 0
        self._total = total
        self._on_progress = on_progress

    def add(self, num_bytes: int) -> None:
        self.done += num_bytes
        self._on_progress(self.done, self._total)


def _bytes_to_check(model: ModelDirectory) -> int:
    """Marked chunks, and what only a proof vouches for once more when all of it is there."""
    index = model.index
    proofs = [part for proof in needed_proofs(index) for part in proof.parts if isinstance(part, FileRange)]
    proven = sum(part.end - part.begin for part in proofs) if model.is_local or model.is_full() else 0
    if model.is_local:
        return proven + sum(file.size_bytes for file in index.files if file.chunk_digests is not None)
    ranges = (index.layouts[file].range_of(chunk) for file, chunk in model.present_in_order())
    return proven + sum(end - begin for begin, end in ranges)


def _repair(
    model: ModelDirectory, resized: list[int], wrong: tuple[tuple[int, int], ...], unproven: tuple[str, ...]
) -> None:
    status = doubt(model, model.read_status(), proven=not unproven)
    restore_sizes(model, resized)
    unmark(model, wrong)
    for number, file in enumerate(model.index.files):
        if file.path in unproven:
            forget(model, number)
    # Everything that is still marked has just been looked at.
    believe(model, status)


def _lacking(model: ModelDirectory) -> tuple[tuple[int, int], ...]:
    if not model.read_status().sealed:
        return ()
    present = frozenset(model.present_in_order())
    return tuple(place for place in model.index.chunks_in_order() if place not in present)


def _unproven(model: ModelDirectory, count: _Counter) -> tuple[str, ...]:
    failed = [proof for proof in needed_proofs(model.index) if not proof_holds(model, proof, on_bytes=count.add)]
    return tuple(sorted(set().union(*(proof.paths for proof in failed))))


def _check_local(model: ModelDirectory, count: _Counter) -> IntegrityReport:
    index = model.index
    sizes = [shard_size(model.shard(number)) for number in range(len(index.files))]
    resized = tuple(file.path for file, size in zip(index.files, sizes, strict=True) if size != file.size_bytes)
    wrong = tuple(_wrong_local(model, count))
    unproven = () if resized else _unproven(model, count)
    return IntegrityReport(count.done, resized, wrong, unproven, repaired=False)


def _wrong_local(model: ModelDirectory, count: _Counter) -> Iterator[tuple[int, int]]:
    for number, (file, layout) in enumerate(zip(model.index.files, model.index.layouts, strict=True)):
        for chunk in range(len(layout)) if file.chunk_digests is not None else ():
            if not chunk_is_right(model, number, chunk):
                yield number, chunk
            begin, end = layout.range_of(chunk)
            count.add(end - begin)
