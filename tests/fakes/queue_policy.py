"""A queue policy as simple as can be, and strict about what it is told."""

from collections.abc import Callable

from headrace_server.domain import Demand, EngineCapacity, EngineStats
from headrace_server.queueing import (
    Arrival,
    Decisions,
    Outlook,
    QueueView,
    Refusal,
    RefusalReason,
    Stage,
    TicketId,
    TicketView,
)


class FirstCome:
    """A `QueuePolicy` that lets `limit` requests in, in their order, those first that went back. An error of whoever
    calls it is an AssertionError.

    Attributes:
        limit: may be changed; what is decided next heeds it.
        favoured: those whom it favours when it lets them in.
        door, seat: what newcomers are told, and those who join; None: they may.
        to_preempt: whom to preempt next.
        capacities: of the engines so far.
        observed: all statistics.
        told: every event that concerns one ticket, `(what, ticket)`.
        num_decisions: how often it was asked.
        failure: raised the next time.
        sayings: what the engine said, `(ticket, computed, cached)` and `(ticket, output)`.
    """

    def __init__(self, limit: int = 1) -> None:
        self.limit = limit
        self.favoured: set[TicketId] = set()
        self.door: Callable[[Arrival], Refusal | None] = lambda _arrival: None
        self.seat: Callable[[Demand], Refusal | None] = lambda _demand: None
        self.to_preempt: list[TicketId] = []
        self.capacities: list[EngineCapacity] = []
        self.observed: list[EngineStats] = []
        self.told: list[tuple[str, TicketId]] = []
        self.num_decisions = 0
        self.failure: Exception | None = None
        self.sayings: list[tuple[int, ...]] = []
        self.arrivals: dict[TicketId, Arrival] = {}
        self.demands: dict[TicketId, Demand] = {}
        self._stages: dict[TicketId, Stage] = {}
        self._line: list[TicketId] = []
        self._in_front: set[TicketId] = set()

    @property
    def num_tickets(self) -> int:
        """Tickets that have not left."""
        return len(self._stages)

    def tickets(self, stage: Stage) -> list[TicketId]:
        """Those that stand there."""
        return [ticket for ticket, at in self._stages.items() if at is stage]

    def engine_changed(self, capacity: EngineCapacity, now: float) -> None:
        assert not self.tickets(Stage.RUNNING), "another engine, and somebody still runs on the last"
        self.capacities.append(capacity)

    def observe(self, stats: EngineStats, now: float) -> None:
        assert self.capacities, "there is no engine yet"
        self.observed.append(stats)

    def arrive(self, ticket: TicketId, arrival: Arrival, now: float) -> Refusal | None:
        assert ticket not in self._stages
        refusal = self.door(arrival)
        if refusal is None:
            self._tell("arrive", ticket)
            self._stages[ticket] = Stage.AT_THE_DOOR
            self.arrivals[ticket] = arrival
        return refusal

    def join(self, ticket: TicketId, demand: Demand, now: float) -> Refusal | None:
        assert self._stages[ticket] is Stage.AT_THE_DOOR
        refusal = self.seat(demand)
        if refusal is None:
            self._tell("join", ticket)
            self.demands[ticket] = demand
            self._stages[ticket] = Stage.WAITING
            self._line = sorted([*self._line, ticket], key=lambda ticket: (ticket not in self._in_front, ticket))
        return refusal

    def requeue(self, ticket: TicketId, now: float) -> None:
        assert self._stages[ticket] is Stage.RUNNING
        self._tell("requeue", ticket)
        self._stages[ticket] = Stage.AT_THE_DOOR
        self._in_front.add(ticket)

    def leave(self, ticket: TicketId, now: float) -> None:
        self._tell("leave", ticket)
        if self._stages.pop(ticket, None) is not None:
            self._out_of_line(ticket)

    def began(self, ticket: TicketId, num_computed_tokens: int, num_cached_tokens: int, now: float) -> None:
        assert self._stages[ticket] is Stage.RUNNING
        self.sayings.append((ticket, num_computed_tokens, num_cached_tokens))

    def generated(self, ticket: TicketId, num_tokens: int, now: float) -> None:
        assert self._stages[ticket] is Stage.RUNNING
        self.sayings.append((ticket, num_tokens))

    def decide(self, now: float) -> Decisions:
        self.num_decisions += 1
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        refused = [ticket for ticket in self._stages if self._is_late(ticket, now)]
        for ticket in refused:
            del self._stages[ticket]
            self._out_of_line(ticket)
        admitted = self._line[: max(0, self.limit - len(self.tickets(Stage.RUNNING)))]
        for ticket in admitted:
            self._out_of_line(ticket)
            self._stages[ticket] = Stage.RUNNING
        preempted, self.to_preempt = self.to_preempt, []
        expired = Refusal(RefusalReason.DEADLINE_EXPIRED)
        deadlines = [at for ticket in self._stages if (at := self.arrivals[ticket].deadline) is not None]
        return Decisions(
            tuple(admitted),
            tuple((ticket, expired) for ticket in refused),
            tuple(preempted),
            min(deadlines, default=None),
            frozenset(self.favoured.intersection(admitted)),
        )

    def _is_late(self, ticket: TicketId, now: float) -> bool:
        deadline = self.arrivals[ticket].deadline
        return deadline is not None and deadline <= now and self._stages[ticket] is not Stage.AT_THE_DOOR

    def outlook(self, ticket: TicketId, now: float) -> Outlook | None:
        assert self._stages[ticket] is Stage.WAITING
        return Outlook(self._line.index(ticket) + 1, 2.0)

    def view(self, now: float) -> QueueView:
        tickets = tuple(self._view(ticket, stage) for ticket, stage in self._stages.items())
        return QueueView(tickets, (), self.limit, len(self.tickets(Stage.RUNNING)), None)

    def _view(self, ticket: TicketId, stage: Stage) -> TicketView:
        arrival, is_waiting = self.arrivals[ticket], stage is Stage.WAITING
        return TicketView(
            ticket,
            arrival.tenant,
            arrival.service_class,
            stage,
            since=1000.0,
            deadline=arrival.deadline,
            position=self._line.index(ticket) + 1 if is_waiting else None,
            wait_seconds=2.0 if is_waiting else None,
            why="a slot" if is_waiting else "",
        )

    def _tell(self, what: str, ticket: TicketId) -> None:
        self.told.append((what, ticket))

    def _out_of_line(self, ticket: TicketId) -> None:
        if ticket in self._line:
            self._line.remove(ticket)
