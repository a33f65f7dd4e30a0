"""Sees what an engine does for whom, and what a queue policy says and does, without changing any of it."""

from dataclasses import dataclass, field

from headrace_server.domain import Demand, EngineCapacity, EngineReply, EngineRequest, EngineStats, RequestId, Seat
from headrace_server.engine.base import Engine, EngineInfo
from headrace_server.queueing import Arrival, Decisions, Outlook, QueuePolicy, QueueView, Refusal, TicketId
from loadtests.fair.service import CACHED_WEIGHT, OUTPUT_WEIGHT, PROMPT_WEIGHT, Service
from loadtests.fair.virtual_loop import now


@dataclass(slots=True)
class Seen:
    """One request in the engine: when it was let in, when its first prompt was done, when its last token came. Of one
    that was let in twice, the last time."""

    deadline: float | None
    admitted_at: float | None = None
    began_at: float | None = None
    last_token_at: float | None = None
    num_admissions: int = 0


@dataclass(slots=True)
class Witness:
    """What engines did: `service` by tenant, `seen` by request."""

    service: Service = field(default_factory=Service)
    seen: dict[RequestId, Seen] = field(default_factory=dict)

    def watch(self, engine: Engine) -> Engine:
        """The same engine, watched."""
        return _WatchedEngine(engine, self)


class _WatchedEngine:
    """See `engine.base.Engine`."""

    def __init__(self, engine: Engine, witness: Witness) -> None:
        self._engine = engine
        self._witness = witness

    async def start(self) -> EngineInfo:
        return await self._engine.start()

    async def submit(self, request: EngineRequest, seat: Seat) -> EngineReply:
        seen = self._witness.seen.setdefault(request.request_id, Seen(request.deadline))
        return await self._engine.submit(
            request, _WatchedSeat(seat, seen, self._witness.service, request.caller.tenant)
        )

    def stats(self) -> EngineStats:
        return self._engine.stats()

    async def check(self) -> None:
        await self._engine.check()

    async def heartbeat(self) -> None:
        await self._engine.heartbeat()

    async def close(self) -> None:
        await self._engine.close()


class _WatchedSeat:
    """See `domain.Seat`."""

    def __init__(self, seat: Seat, seen: Seen, service: Service, tenant: str) -> None:
        self._seat = seat
        self._seen = seen
        self._service = service
        self._tenant = tenant

    @property
    def is_favoured(self) -> bool:
        return self._seat.is_favoured

    async def take(self, demand: Demand) -> None:
        await self._seat.take(demand)
        self._seen.admitted_at = now()
        self._seen.num_admissions += 1

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        self._seat.began(num_computed_tokens, num_cached_tokens)
        self._seen.began_at = now()
        amount = PROMPT_WEIGHT * num_computed_tokens + CACHED_WEIGHT * num_cached_tokens
        self._service.add(self._tenant, now(), amount)

    def generated(self, num_tokens: int) -> None:
        self._seat.generated(num_tokens)
        self._seen.last_token_at = now()
        self._service.add(self._tenant, now(), OUTPUT_WEIGHT * num_tokens)


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a request was told that it would wait (None: nothing was known), and how long it did."""

    told_seconds: float | None
    waited_seconds: float


@dataclass(slots=True)
class _Waiting:
    since: float
    told_seconds: float | None = None
    was_told: bool = False


class WatchedPolicy:
    """See `queueing.QueuePolicy`. Each request is asked for its outlook once, right after the decision that left it
    waiting; `waits` has those that were let in later than that."""

    def __init__(self, policy: QueuePolicy) -> None:
        self.waits: list[Wait] = []
        self.num_preempted = 0
        self._policy = policy
        self._waiting: dict[TicketId, _Waiting] = {}
        self._untold: list[TicketId] = []

    def engine_changed(self, capacity: EngineCapacity, now: float) -> None:
        self._policy.engine_changed(capacity, now)

    def observe(self, stats: EngineStats, now: float) -> None:
        self._policy.observe(stats, now)

    def arrive(self, ticket: TicketId, arrival: Arrival, now: float) -> Refusal | None:
        return self._policy.arrive(ticket, arrival, now)

    def join(self, ticket: TicketId, demand: Demand, now: float) -> Refusal | None:
        refusal = self._policy.join(ticket, demand, now)
        if refusal is None:
            self._waiting[ticket] = _Waiting(now)
            self._untold.append(ticket)
        return refusal

    def requeue(self, ticket: TicketId, now: float) -> None:
        self._policy.requeue(ticket, now)

    def leave(self, ticket: TicketId, now: float) -> None:
        self._waiting.pop(ticket, None)
        self._policy.leave(ticket, now)

    def began(self, ticket: TicketId, num_computed_tokens: int, num_cached_tokens: int, now: float) -> None:
        self._policy.began(ticket, num_computed_tokens, num_cached_tokens, now)

    def generated(self, ticket: TicketId, num_tokens: int, now: float) -> None:
        self._policy.generated(ticket, num_tokens, now)

    def decide(self, now: float) -> Decisions:
        decisions = self._policy.decide(now)
        self.num_preempted += len(decisions.preempt)
        for ticket in decisions.admit:
            waiting = self._waiting.pop(ticket, None)
            if waiting is not None and waiting.was_told:
                self.waits.append(Wait(waiting.told_seconds, now - waiting.since))
        for ticket, _ in decisions.refuse:
            self._waiting.pop(ticket, None)
        self._tell(now)
        return decisions

    def _tell(self, now: float) -> None:
        for ticket in self._untold:
            if (waiting := self._waiting.get(ticket)) is not None:
                outlook = self._policy.outlook(ticket, now)
                waiting.told_seconds = outlook.wait_seconds if outlook is not None else None
                waiting.was_told = True
        self._untold.clear()

    def outlook(self, ticket: TicketId, now: float) -> Outlook | None:
        return self._policy.outlook(ticket, now)

    def view(self, now: float) -> QueueView:
        return self._policy.view(now)
