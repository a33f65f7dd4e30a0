"""The queue before one model's engine: what its policy decides is done here.

Tells the policy of everything that happens to requests and to the engine, asks it once for all that has happened in a
turn of the loop, and lets requests in, refuses them or sends them back. While anybody waits it asks at least every
50 ms, because an engine's steps are not told one by one. Plain calls on the event loop; nothing here is awaited.

The invariant: a ticket that the policy was told of leaves it once, and a turn that somebody waits for is done as soon
as the policy has said anything about it.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from headrace_server.domain import Demand, EngineCapacity, EngineRequest, ModelId, RequestId, ServiceClass
from headrace_server.engine.base import Engine
from headrace_server.errors import EngineDied
from headrace_server.queueing import (
    Arrival,
    Decisions,
    Outlook,
    QueuePolicy,
    QueueView,
    Refusal,
    Stage,
    TicketId,
)
from headrace_server.serving.accounts import Account
from headrace_server.serving.admission import Occupant
from headrace_server.serving.queue_place import QueuePlace
from headrace_server.serving.refusals import Refusals

_TICK_SECONDS = 0.05
_MOMENT_SECONDS = 0.001  # timers of some loops are early by as much


@dataclass(frozen=True, slots=True)
class ModelQueueView:
    """How one model's queue stands `now`; `request_ids` are those of the tickets in `queue`."""

    model: ModelId
    now: float
    queue: QueueView
    request_ids: Mapping[TicketId, RequestId]


class ModelQueue:
    """See the module. `check_integrity` says whether the books agree."""

    def __init__(self, model: ModelId, policy: QueuePolicy, refusals: Refusals) -> None:
        self.model = model
        self._policy = policy
        self._refusals = refusals
        self._loop = asyncio.get_running_loop()
        self._places: dict[TicketId, QueuePlace] = {}
        self._last_ticket = 0
        self._counts: Counter[tuple[ServiceClass, Stage]] = Counter()
        self._num_waiting = 0
        self._engine: Engine | None = None
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf

    def now(self) -> float:
        """The event loop's clock."""
        return self._loop.time()

    # What requests say, through their places.

    def arrive(self, request: EngineRequest, occupant: Occupant, account: Account) -> QueuePlace | Refusal:
        """A request comes to the door."""
        self._last_ticket += 1
        ticket = TicketId(self._last_ticket)
        refusal = self._policy.arrive(ticket, _arrival(request), self.now())
        if refusal is not None:
            return refusal
        place = self._places[ticket] = QueuePlace(self, ticket, request, occupant, account)
        self._counts[request.service_class, place.stage] += 1
        return place

    def board(self, engine: Engine, capacity: EngineCapacity) -> None:
        """There are leases on this engine."""
        if engine is not self._engine:
            self.lose_engine(self._engine)
            self._engine = engine
            self._policy.engine_changed(capacity, self.now())

    def join(self, place: QueuePlace, demand: Demand) -> None:
        """A request waits from now on, or is told at once that it does not. One whose engine died while it waited has
        kept its place in the line, and may have been let in since."""
        if place.engine is not self._engine:
            place.settle(_stopped())
            return
        match place.stage:
            case Stage.AT_THE_DOOR:
                self._join_line(place, demand)
            case Stage.WAITING:
                self._decide_soon()
            case Stage.RUNNING:
                place.settle(None)

    def _join_line(self, place: QueuePlace, demand: Demand) -> None:
        refusal = self._policy.join(place.ticket, demand, self.now())
        if refusal is not None:
            self._refuse(place, refusal)
            return
        self.move(place, Stage.WAITING)
        self._decide_soon()

    def go_back(self, place: QueuePlace) -> None:
        """A request has left the engine, to join again."""
        if place.stage is Stage.RUNNING:
            self._policy.requeue(place.ticket, self.now())
            self.move(place, Stage.AT_THE_DOOR)
            self._something_happened()

    def lose_engine(self, engine: Engine | None) -> None:
        """An engine is gone: whoever is in it or waits for it has to find another one."""
        if engine is not self._engine or engine is None:
            return
        self._engine = None
        for place in self._places.values():
            if place.engine is engine:
                self.go_back(place)
                place.settle(_stopped())

    def began(self, place: QueuePlace, num_computed_tokens: int, num_cached_tokens: int, now: float) -> None:
        """See `domain.Seat.began`."""
        if place.stage is Stage.RUNNING:
            self._policy.began(place.ticket, num_computed_tokens, num_cached_tokens, now)
            self._something_happened()

    def generated(self, place: QueuePlace, num_tokens: int, now: float) -> None:
        """See `domain.Seat.generated`. Nothing is decided for it: it is called for every token."""
        if place.stage is Stage.RUNNING:
            self._policy.generated(place.ticket, num_tokens, now)

    def leave(self, place: QueuePlace) -> None:
        """A request is over."""
        del self._places[place.ticket]
        self.move(place, None)
        self._policy.leave(place.ticket, self.now())
        self._something_happened()
        if not self._places:
            self._wake_at(math.inf)

    def outlook(self, place: QueuePlace) -> Outlook | None:
        """See `QueuePolicy.outlook`."""
        return self._policy.outlook(place.ticket, self.now()) if place.stage is Stage.WAITING else None

    # The books.

    def move(self, place: QueuePlace, stage: Stage | None) -> None:
        """A place's stage changes; None: it has none any more."""
        service_class = place.service_class
        self._counts[service_class, place.stage] -= 1
        self._num_waiting -= place.stage is Stage.WAITING
        if stage is not None:
            self._counts[service_class, stage] += 1
            self._num_waiting += stage is Stage.WAITING
            place.stage = stage

    def count(self, service_class: ServiceClass, stage: Stage) -> int:
        """Requests of a class that stand there."""
        return self._counts[service_class, stage]

    @property
    def num_places(self) -> int:
        """Requests that have come and are not over."""
        return len(self._places)

    def view(self) -> ModelQueueView:
        """For `/admin/queue`."""
        ids, now = {ticket: place.request_id for ticket, place in self._places.items()}, self.now()
        return ModelQueueView(self.model, now, self._policy.view(now), ids)

    def check_integrity(self) -> None:
        """Raise AssertionError if the books do not agree with the places."""
        counts = Counter((place.service_class, place.stage) for place in self._places.values())
        if counts != +self._counts:
            raise AssertionError(f"places are {counts}, counted are {self._counts}")
        if self._num_waiting != sum(place.stage is Stage.WAITING for place in self._places.values()):
            raise AssertionError("the waiting are not counted right")

    # Decisions.

    def _something_happened(self) -> None:
        if self._num_waiting:
            self._decide_soon()

    def _decide_soon(self) -> None:
        """Once for everything that happens in this turn of the loop."""
        if self._soon is None:
            self._soon = self._loop.call_soon(self._decide)

    def _decide(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._engine is None:
            self._wake_at(math.inf)
            return
        now = self.now()
        self._wake_at(now + _TICK_SECONDS)  # whatever comes of this
        self._policy.observe(self._engine.stats(), now)
        decisions = self._policy.decide(now)
        self._carry_out(decisions)
        soonest = math.inf if decisions.look_again_at is None else max(decisions.look_again_at, now + _MOMENT_SECONDS)
        self._wake_at(min(soonest, now + _TICK_SECONDS) if self._num_waiting else soonest)

    def _carry_out(self, decisions: Decisions) -> None:
        for ticket, refusal in decisions.refuse:
            self._refuse(self._places[ticket], refusal)
        for ticket in decisions.preempt:
            self._places[ticket].preempt()
        for ticket in decisions.admit:
            self.move(self._places[ticket], Stage.RUNNING)
            self._places[ticket].admit(is_favoured=ticket in decisions.favoured)

    def _refuse(self, place: QueuePlace, refusal: Refusal) -> None:
        """The policy has forgotten the request; it is at the door until it has heard of it and leaves."""
        self.move(place, Stage.AT_THE_DOOR)
        place.refuse(refusal.reason, self._refusals.error(refusal, self.model))

    def _wake_at(self, when: float) -> None:
        """Decide at this time, and not before."""
        if when == self._wakes_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = when
        self._timer = None if math.isinf(when) else self._loop.call_at(when, self._decide)


def _arrival(request: EngineRequest) -> Arrival:
    """A stream may not begin again: it may have been begun."""
    return Arrival(
        request.caller.tenant,
        request.service_class,
        request.num_bytes,
        deadline=request.deadline,
        can_restart=not request.stream,
    )


def _stopped() -> EngineDied:
    return EngineDied("the engine of this model has stopped")
