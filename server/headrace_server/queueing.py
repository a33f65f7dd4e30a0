"""Who waits for an engine, and who is let in: what `serving` tells the queue policy, and what the policy decides.

Frozen values and protocols only. One policy object stands before each engine; `serving` tells it whatever happens to a
request and to the engine, asks it what to do, and does it; neither imports the other. Times are in seconds on the
caller's clock, and never go back. Tokens are the engine's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import NewType, Protocol, TypeAlias

from headrace_server.domain import Demand, EngineCapacity, EngineStats, ServiceClass, Tenant, TenantId

TicketId = NewType("TicketId", int)

TenantReader: TypeAlias = Callable[[TenantId], Tenant]
"""On what terms a tenant is served; knows every id."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request at the door: nothing has been spent on it yet.

    `deadline`: after it nobody wants the answer; None: there is none. `can_restart`: it may be thrown out of the engine
    and begin again, because nothing of its answer leaves before all of it is there.
    """

    tenant: TenantId
    service_class: ServiceClass
    num_bytes: int
    deadline: float | None = None
    can_restart: bool = False


class RefusalReason(StrEnum):
    """Why a request is not served; public (`code` of the error, label of a metric).

    The queue is full, or the tenant's share of it; the request would wait for longer than its class may, or past its
    deadline; its deadline has passed.
    """

    QUEUE_FULL = "queue_full"
    TENANT_QUEUE_FULL = "tenant_queue_full"
    WAIT_TOO_LONG = "wait_too_long"
    DEADLINE_UNMEETABLE = "deadline_unmeetable"
    DEADLINE_EXPIRED = "deadline_expired"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request is not served. `retry_after_seconds`: when it is expected to be let in; None: trying again is in vain,
    or nothing is known."""

    reason: RefusalReason
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Decisions:
    """What to do now.

    Attributes:
        admit: requests to hand to the engine, in this order.
        favoured: those of them whom the engine is to serve before others of their class.
        refuse: requests that wait, or are in the engine (only DEADLINE_EXPIRED), and are to end.
        preempt: requests to take out of the engine; each is to be told of by `QueuePolicy.requeue`.
        look_again_at: ask again at this time even if nothing happens; None: only when something does.
    """

    admit: tuple[TicketId, ...] = ()
    refuse: tuple[tuple[TicketId, Refusal], ...] = ()
    preempt: tuple[TicketId, ...] = ()
    look_again_at: float | None = None
    favoured: frozenset[TicketId] = frozenset()


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a request that waits can expect. `position`: 1 for the one that is let in next. `wait_seconds`: until it is
    let in; None: not known yet."""

    position: int
    wait_seconds: float | None


class Stage(Enum):
    """Where a request stands."""

    AT_THE_DOOR = "at_the_door"  # being tokenised, or its model is being loaded
    WAITING = "waiting"
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class TicketView:
    """One request, for people. `position` and `wait_seconds` are None unless it waits; `why` says in a few words what
    it waits for (`a slot`, `memory for its tokens`, `prompts before it`, `its tenant's concurrency`), or is empty."""

    ticket: TicketId
    tenant: TenantId
    service_class: ServiceClass
    stage: Stage
    since: float
    num_prompt_tokens: int | None = None
    num_output_tokens: int = 0
    deadline: float | None = None
    position: int | None = None
    wait_seconds: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class TenantView:
    """One tenant that has requests here. `virtual_tokens` is its counter: the one with the lowest is served next.
    `served_tokens`: what it was charged since the engine started, weighted as the policy does."""

    tenant: TenantId
    weight: float
    num_waiting: int
    num_running: int
    virtual_tokens: float
    served_tokens: float


@dataclass(frozen=True, slots=True)
class QueueView:
    """How things stand. `slot_limit`: sequences that are let into the engine at present, None: no bound known.
    `tokens_per_second`: what the engine has been doing lately, weighted; None: not known."""

    tickets: tuple[TicketView, ...]
    tenants: tuple[TenantView, ...]
    slot_limit: int | None
    num_sequences_running: int
    tokens_per_second: float | None


class QueuePolicy(Protocol):
    """Decides who is let in to one engine, and when. Every method but the last three may change what `decide` would
    say, so whoever calls it asks again."""

    def engine_changed(self, capacity: EngineCapacity, now: float) -> None:
        """There is an engine, another one than before if there was one; what was running on that was told of by
        `requeue` or `leave`."""

    def observe(self, stats: EngineStats, now: float) -> None:
        """The engine's counters, as often as anybody likes."""

    def arrive(self, ticket: TicketId, arrival: Arrival, now: float) -> Refusal | None:
        """A request comes to the door. If it is not refused, it counts towards the queue's bounds while it is
        at the door or waits."""

    def join(self, ticket: TicketId, demand: Demand, now: float) -> Refusal | None:
        """It has been tokenised and waits from now on. A refused one is to leave."""

    def requeue(self, ticket: TicketId, now: float) -> None:
        """It is no longer in the engine and goes back to the door, to join again; what it was charged stays charged. It
        will be the first of its tenant and class."""

    def leave(self, ticket: TicketId, now: float) -> None:
        """It is over, wherever it stood. Unknown tickets are ignored."""

    def began(self, ticket: TicketId, num_computed_tokens: int, num_cached_tokens: int, now: float) -> None:
        """See `domain.Seat.began`."""

    def generated(self, ticket: TicketId, num_tokens: int, now: float) -> None:
        """See `domain.Seat.generated`."""

    def decide(self, now: float) -> Decisions:
        """What to do. What was decided counts as done: an admitted ticket runs, a refused one has left, a preempted one
        still has its place until `requeue` or `leave`."""

    def outlook(self, ticket: TicketId, now: float) -> Outlook | None:
        """What a ticket that waits can expect; None: it does not wait."""

    def view(self, now: float) -> QueueView:
        """For `/admin/queue`."""
