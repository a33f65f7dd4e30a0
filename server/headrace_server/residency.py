"""Who is in memory: what the engine pool tells the placement policy, and what the policy decides.

Frozen values and protocols only. The pool describes how things stand, the policy answers with what is to be done, and
the pool does it; neither imports the other. Bytes are of the memory that engines use (the GPU's, or the machine's where
there is none); times are in seconds on the pool's clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from headrace_server.domain import ModelId


class Phase(Enum):
    """Where a model that has memory stands. One that starts again after a fault keeps its memory and is STARTING."""

    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that has memory, or has been promised it.

    Attributes:
        memory_bytes: what it takes: an estimate while it starts, measured afterwards.
        num_leases: requests that use it now.
        serving_since: when it became ready.
        idle_since: when its last lease ended, or when it became ready.
        keep_alive_seconds: how long it may be idle; None: until the memory is needed.
        is_waiting: while it starts: for weights that are on their way, or it has been starting for so long that others
            should not wait for it.
    """

    model: ModelId
    memory_bytes: int
    phase: Phase
    num_leases: int = 0
    is_pinned: bool = False
    serving_since: float = 0.0
    idle_since: float = 0.0
    keep_alive_seconds: float | None = None
    is_waiting: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that somebody wants in memory.

    `memory_bytes` is an estimate, `since` when it was first wanted. `may_evict`: others may have to go for it; a model
    that is only loaded in advance takes memory that is free and waits for none.
    """

    model: ModelId
    memory_bytes: int
    since: float
    may_evict: bool = True


@dataclass(frozen=True, slots=True)
class NoRoom:
    """A model that cannot be placed, however long it waits.

    `available_bytes` is what it could have; `blocked_by` are the pinned models that would have to go, largest first. It
    is empty where the whole budget is too small, and where a model that may not evict finds too little free.
    """

    model: ModelId
    needed_bytes: int
    available_bytes: int
    blocked_by: tuple[ModelId, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """What to do now.

    Attributes:
        start: engines to start, in this order.
        evict: engines that nobody uses, to stop.
        drain: engines in use that take no new requests from now on, and stop when their last one has ended.
        no_room: wishes that will not come true.
        look_again_at: ask again at this time even if nothing happens; None: only when something does.
    """

    start: tuple[ModelId, ...] = ()
    evict: tuple[ModelId, ...] = ()
    drain: tuple[ModelId, ...] = ()
    no_room: tuple[NoRoom, ...] = ()
    look_again_at: float | None = None


class PlacementPolicy(Protocol):
    """Decides who gets memory."""

    def plan(self, residents: Sequence[Resident], wanted: Sequence[Wanted], now: float) -> Placement:
        """What to do, as things stand. Keeps nothing between calls; models are in one of the two lists at most."""


class RestartPolicy(Protocol):
    """Decides how long one model waits after it went wrong. One object for each model."""

    def load_failed(self, now: float) -> float:
        """The engine did not start: seconds until it may be tried again."""

    def died(self, now: float) -> float:
        """An engine that served is dead or hangs: seconds until the next one may start, 0 for at once."""

    def ready(self, now: float) -> None:
        """The engine serves."""
