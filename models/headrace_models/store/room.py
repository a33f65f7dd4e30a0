"""Making room for a fetch: measure, plan (`eviction`), carry out, measure again.

What is used is what is allocated below the store's directory, whatever it is, and what other fetches under way have
reserved. The caller holds the store's lock, so that one process at a time evicts; everything else is only tried for,
and what somebody takes into use meanwhile is left alone.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace_models.errors import ModelBusy, ModelError, ModelNotFound, NoSpace, StoreDamaged
from headrace_models.store.eviction import Step, Usage, plan_eviction
from headrace_models.store.locks import Hold, is_held
from headrace_models.store.model_directory import FETCH_LOCK, LEASE_LOCK, PIN, ModelDirectory, model_names
from headrace_models.store.refusals import explained
from headrace_models.store.removal import alone_with, tail, take_away, trim
from headrace_models.store.reservation import outstanding_bytes, reserve
from headrace_models.store.space import allocated_bytes, size_text
from headrace_models.store.store_status import last_used

# Directories, maps and the journal grow too.
DISK_MARGIN_BYTES = 16 << 20
EDGE_BYTES = 4 << 20
MAX_VAIN_ROUNDS = 20
VAIN_ROUND_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class _Shortage:
    """By how many bytes the budget and the disk are too small."""

    of_budget: int
    of_disk: int

    @property
    def bytes(self) -> int:
        return max(self.of_budget, self.of_disk)


@dataclass(frozen=True, slots=True)
class Room:
    """The budget of one store: `max_bytes` (None: the disk's) below `models`; `free_bytes` tells what its disk has."""

    models: Path
    max_bytes: int | None
    free_bytes: Callable[[Path], int]

    def make(self, needed_bytes: int, *, protect: str) -> None:
        """Let the model `protect` grow by `needed_bytes`, and reserve them for as long as somebody fetches it.

        Raises NoSpace, with nothing evicted unless others took what was to be; StoreError; OSError.
        """
        used = self._used(protect)
        short = self._shortage(used, needed_bytes)
        if needed_bytes > 0 and short.bytes > 0:
            try:
                self._evict(used - short.bytes, protect)
            except NoSpace as error:
                raise NoSpace(self._why(short, needed_bytes, error)) from error
        with contextlib.suppress(ModelNotFound, StoreDamaged, FileNotFoundError):
            reserve(ModelDirectory.read(self.models / protect), needed_bytes)

    def _shortage(self, used: int, needed_bytes: int) -> _Shortage:
        promised = used - allocated_bytes(self.models)
        return _Shortage(
            0 if self.max_bytes is None else used + needed_bytes - self.max_bytes,
            needed_bytes + promised + DISK_MARGIN_BYTES - self.free_bytes(self.models),
        )

    def _used(self, protect: str) -> int:
        others = (name for name in model_names(self.models) if name != protect)
        return allocated_bytes(self.models) + sum(map(self._outstanding, others))

    def _outstanding(self, name: str) -> int:
        try:
            return outstanding_bytes(ModelDirectory.read(self.models / name))
        except (ModelNotFound, StoreDamaged):
            return 0

    def _evict(self, allowed_bytes: int, protect: str) -> None:
        """Evict until no more than `allowed_bytes` are used.

        Blocks at the ends of a hole stay, so that may take a second round; so it does when somebody takes a model into
        use between planning and doing. A file system that counts freed blocks late gets no more than EDGE_BYTES extra.
        """
        vain_rounds = freed_bytes = 0
        enough_bytes = self._used(protect) - allowed_bytes + EDGE_BYTES
        while (excess := self._used(protect) - allowed_bytes) > 0 and freed_bytes < enough_bytes:
            usages = [self._usage(name, protect) for name in model_names(self.models)]
            plan = plan_eviction(usages, min(excess, enough_bytes - freed_bytes))
            done = [step.freed_bytes for step in plan.steps if self._carry_out(step)]
            freed_bytes += sum(done)
            if not done:
                vain_rounds += 1
                time.sleep(VAIN_ROUND_SECONDS)
            if vain_rounds >= MAX_VAIN_ROUNDS:
                raise NoSpace(f"{size_text(excess)} too few, and the models that could go are taken into use again")

    def _usage(self, name: str, protect: str) -> Usage:
        path = self.models / name
        kept = name == protect or any(is_held(path / lock, Hold.EXCLUSIVE) for lock in (FETCH_LOCK, LEASE_LOCK))
        try:
            model = ModelDirectory.read(path)
            kept = kept or model.is_local or (path / PIN).exists()
            sizes = () if kept else _tail_bytes(model)
            return Usage(name, last_used(model), allocated_bytes(path), sizes, kept)
        except ModelNotFound:
            return Usage(name, 0.0, 0, (), kept=True)
        except StoreDamaged:
            return Usage(name, 0.0, allocated_bytes(path), (), kept)

    def _carry_out(self, step: Step) -> bool:
        """Whether anything went."""
        path = self.models / step.key
        if (path / PIN).exists():
            return False
        try:
            if step.num_chunks is None or not self._trim(path, step.num_chunks):
                take_away(self.models, step.key)
        except (ModelBusy, ModelNotFound):
            return False
        return True

    def _trim(self, path: Path, num_chunks: int) -> bool:
        try:
            with alone_with(path), explained(f"evict from {path.name}"):
                return trim(ModelDirectory.read(path), num_chunks)
        except StoreDamaged:
            return False

    def _why(self, short: _Shortage, needed_bytes: int, error: ModelError) -> str:
        if self.max_bytes is not None and short.of_budget >= short.of_disk:
            limit = f"the model cache may take {size_text(self.max_bytes)} (cache.max_bytes)"
            way_out = "remove a model with headrace rm, or raise cache.max_bytes"
        else:
            limit = f"the disk of the model cache has {size_text(self.free_bytes(self.models))} left"
            way_out = "remove a model with headrace rm, free some, or set cache.dir to another disk"
        return f"{limit}, and {size_text(needed_bytes)} are needed: {error}; {way_out}"


def _tail_bytes(model: ModelDirectory) -> list[int]:
    ranges = (model.index.layouts[file].range_of(chunk) for file, chunk in tail(model))
    return [end - begin for begin, end in ranges]
