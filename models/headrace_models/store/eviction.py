"""What goes first when room is needed. Pure: usages in, a plan out; `room` measures and carries it out.

Least recently used models first, from the end of each: the last layers go before the first ones and the headers last,
so that a model which keeps only a part starts from disk while the rest streams in. A model of which all would have to
go goes as a whole. What is in use, pinned or being fetched is never in a plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from headrace_models.errors import NoSpace
from headrace_models.store.space import size_text


@dataclass(frozen=True, slots=True)
class Usage:
    """What one model takes.

    `allocated_bytes` is what removing it would free; `tail_bytes` what each chunk that is there would free, the one
    that is used last first; `kept`: it is leased, fetched, pinned, protected, or its weights are not the store's.
    `last_used` is seconds since the epoch.
    """

    key: str
    last_used: float
    allocated_bytes: int
    tail_bytes: Sequence[int]
    kept: bool


@dataclass(frozen=True, slots=True)
class Step:
    """Drop the last `num_chunks` chunks of a model, or all of it where that is None; frees `freed_bytes`."""

    key: str
    num_chunks: int | None
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to drop, in order."""

    steps: tuple[Step, ...]

    @property
    def freed_bytes(self) -> int:
        """What all steps free."""
        return sum(step.freed_bytes for step in self.steps)


def plan_eviction(models: Sequence[Usage], free_bytes_needed: int) -> Plan:
    """Free at least `free_bytes_needed` with as few chunks as that takes, least recently used models first.

    Raises NoSpace, naming what is missing, where everything that may go is not enough; then nothing should go.
    """
    steps: list[Step] = []
    freed_bytes = 0
    for usage in sorted((usage for usage in models if not usage.kept), key=lambda usage: (usage.last_used, usage.key)):
        if freed_bytes >= free_bytes_needed:
            break
        steps.append(_take(usage, free_bytes_needed - freed_bytes))
        freed_bytes += steps[-1].freed_bytes
    if freed_bytes < free_bytes_needed:
        num_kept = sum(usage.kept for usage in models)
        raise NoSpace(
            f"{size_text(free_bytes_needed - freed_bytes)} too few, even without all models but the {num_kept} in use, "
            "pinned or being fetched"
        )
    return Plan(tuple(steps))


def _take(usage: Usage, needed_bytes: int) -> Step:
    """As many chunks as are needed, or the whole model where its chunks do not suffice."""
    freed_bytes = 0
    for num_chunks, size_bytes in enumerate(usage.tail_bytes, start=1):
        freed_bytes += size_bytes
        if freed_bytes >= needed_bytes:
            return Step(usage.key, num_chunks, freed_bytes)
    return Step(usage.key, None, usage.allocated_bytes)
