"""The request batcher's policy: fair between tenants, urgent first, as much as the engine can take.

`FairBatching` is told of every request and of the engine, and keeps one `Entry` for each request. What follows from
that is decided in parts: `door` who may join the queue, `fair_queue` the order, `capacity` how much the engine takes,
`letting_in` who is let in, `estimator` how long the others wait, `deadlines` who has waited for too long.

Pure and synchronous; called by whoever owns it, one call at a time.
"""

from collections.abc import Iterator
from itertools import count

from headrace_server.domain import Demand, EngineCapacity, EngineStats, ServiceClass, TenantId
from headrace_server.queueing import (
    Arrival,
    Decisions,
    Outlook,
    QueueView,
    Refusal,
    RefusalReason,
    Stage,
    TenantReader,
    TicketId,
    TicketView,
)
from headrace_server.scheduling.capacity import Capacity
from headrace_server.scheduling.claims import Claims
from headrace_server.scheduling.costs import Habits, Work
from headrace_server.scheduling.deadlines import Deadlines
from headrace_server.scheduling.door import Door
from headrace_server.scheduling.estimator import Estimator
from headrace_server.scheduling.fair_queue import Entry, FairQueue, Flow, TenantBooks
from headrace_server.scheduling.integrity import check_books
from headrace_server.scheduling.letting_in import LettingIn
from headrace_server.scheduling.lineup import Lineup
from headrace_server.scheduling.load import Load
from headrace_server.scheduling.options import QueueOptions as QueueOptions
from headrace_server.scheduling.queue_view import tenant_view, ticket_view
from headrace_server.scheduling.running import Running

_MOST_IDLE_TENANTS = 4096  # that are remembered
_BEFORE_ALL_OTHERS = 2**62
_EXPIRED = Refusal(RefusalReason.DEADLINE_EXPIRED)


class FairBatching:
    """The `queueing.QueuePolicy` of the module's docstring."""

    def __init__(self, options: QueueOptions, tenants: TenantReader) -> None:
        self._weights = options.weights
        self._read_tenant = tenants
        self._everybody = Habits()
        self._tenants: dict[TenantId, TenantBooks] = {}
        self._present: dict[TenantId, TenantBooks] = {}
        self._idle: dict[TenantId, None] = {}  # the longest idle first
        self._entries: dict[TicketId, Entry] = {}
        self._order = count(1)
        self._num_urgent = 0
        self._capacity = Capacity(options, self._everybody)
        self._queue = FairQueue()
        self._running = Running(options.weights)
        self._deadlines = Deadlines()
        self._estimator = Estimator(self._capacity, self._running, self._everybody)
        self._door = Door(options, self._queue, self._estimator)
        self._claims = Claims(self._running, options.weights)
        self._letting_in = LettingIn(self._queue, self._capacity, self._running, self._claims)

    # The engine.

    def engine_changed(self, capacity: EngineCapacity, now: float) -> None:
        """See `QueuePolicy.engine_changed`."""
        self._capacity.engine_changed(capacity)
        self._running.engine_changed()
        self._estimator.engine_changed()
        for tenant in self._tenants.values():
            tenant.served_cost = 0.0
        self._claims.engine_changed(self._tenants.values(), now)

    def observe(self, stats: EngineStats, now: float) -> None:
        """See `QueuePolicy.observe`."""
        num_prefilled_tokens = self._capacity.observe(stats)
        if num_prefilled_tokens is not None:
            self._running.step_ended(num_prefilled_tokens)

    # A request's way.

    def arrive(self, ticket: TicketId, arrival: Arrival, now: float) -> Refusal | None:
        """See `QueuePolicy.arrive`."""
        self._claims.look(now)
        tenant = self._tenant(arrival.tenant)
        flow = tenant.flows[arrival.service_class.rank]
        entry = Entry(ticket, arrival, flow, next(self._order), now)
        if arrival.deadline is not None and arrival.deadline <= now:
            return _EXPIRED
        own = Work()
        own.add(flow.waiting)
        own.add(flow.at_door)
        entry.work = tenant.expected_work(None, self._weights)
        refusal = self._door.refuse_newcomer(entry, self._wait_seconds(entry, own), now)
        if refusal is None:
            self._entries[ticket] = entry
            self._come(tenant, now)
            if arrival.service_class is ServiceClass.INTERACTIVE:
                self._capacity.interactive_came(now)
            self._num_urgent += arrival.service_class is not ServiceClass.BATCH
            self._door.enter(entry)
            flow.at_door.add(entry.work)
        return refusal

    def join(self, ticket: TicketId, demand: Demand, now: float) -> Refusal | None:
        """See `QueuePolicy.join`. A request that has been in the engine before is not refused for what waits now."""
        self._claims.look(now)
        entry = self._entries[ticket]
        if entry.arrival.deadline is not None and entry.arrival.deadline <= now:
            return _EXPIRED
        self._learn(entry, demand)
        if entry.order > 0:
            wait_seconds = self._wait_seconds(entry, entry.flow.waiting)
            if wait_seconds is not None:
                entry.expected_wait_seconds = wait_seconds / entry.flow.correction.factor
            refusal = self._door.refuse_tokenised(entry, wait_seconds, now)
            if refusal is not None:
                return refusal
        entry.stage, entry.since = Stage.WAITING, now
        entry.joined_at = now
        entry.flow.at_door.add(entry.work, -1)
        self._door.enter_tokens(entry)
        self._queue.of(entry.flow).add(entry)
        self._deadlines.watch(entry)
        return None

    def requeue(self, ticket: TicketId, now: float) -> None:
        """See `QueuePolicy.requeue`."""
        entry = self._entries.get(ticket)
        if entry is None or entry.stage is not Stage.RUNNING:
            return
        entry.num_preemptions += entry.is_leaving
        self._running.release(entry)
        entry.stage, entry.since = Stage.AT_THE_DOOR, now
        if entry.order > 0:
            entry.order -= _BEFORE_ALL_OTHERS
        entry.flow.at_door.add(entry.work)
        self._door.enter(entry)

    def leave(self, ticket: TicketId, now: float) -> None:
        """See `QueuePolicy.leave`."""
        entry = self._entries.pop(ticket, None)
        if entry is None:
            return
        match entry.stage:
            case Stage.AT_THE_DOOR:
                entry.flow.at_door.add(entry.work, -1)
                self._door.enter(entry, -1)
            case Stage.WAITING:
                self._leave_queue(entry)
            case Stage.RUNNING:
                self._leave_engine(entry)
        self._forget(entry, now)

    def began(self, ticket: TicketId, num_computed_tokens: int, num_cached_tokens: int, now: float) -> None:
        """See `QueuePolicy.began`."""
        entry = self._running.entries.get(ticket)
        if entry is not None:
            self._running.began(entry, num_computed_tokens, num_cached_tokens)
            entry.tenant.habits.began(num_computed_tokens, num_cached_tokens)

    def generated(self, ticket: TicketId, num_tokens: int, now: float) -> None:
        """See `QueuePolicy.generated`."""
        self._running.generated(ticket, num_tokens)

    # What to do.

    def decide(self, now: float) -> Decisions:
        """See `QueuePolicy.decide`. Whose deadline has passed goes first, so that nothing is computed for it."""
        self._claims.look(now)
        self._measure_pace(now)
        refused = self._expire(now)
        self._capacity.adapt(now, is_batch_only=self._num_urgent == 0)
        admitted = self._letting_in.admit(self._present.values(), now)
        for entry in admitted:
            self._door.enter_tokens(entry, -1)
            self._door.enter(entry, -1)
            entry.flow.correction.learn(entry.expected_wait_seconds, now - entry.joined_at)
        leaving = self._letting_in.to_preempt(self._present.values())
        for entry in leaving:
            entry.is_leaving = True
        return Decisions(
            admit=tuple(entry.ticket for entry in admitted),
            refuse=tuple((entry.ticket, _EXPIRED) for entry in refused),
            preempt=tuple(entry.ticket for entry in leaving),
            look_again_at=self._deadlines.next_time(),
            favoured=frozenset(entry.ticket for entry in admitted if entry.is_favoured),
        )

    def outlook(self, ticket: TicketId, now: float) -> Outlook | None:
        """See `QueuePolicy.outlook`."""
        self._claims.look(now)
        entry = self._entries.get(ticket)
        if entry is None or entry.stage is not Stage.WAITING:
            return None
        own = Work()
        for earlier in entry.flow.entries[: entry.flow.index(entry)]:
            own.add(earlier.work)
        return self._outlook(entry, own, self._queue.ahead_of(entry.flow, own), self._num_free_slots(entry))

    def view(self, now: float) -> QueueView:
        """See `QueuePolicy.view`."""
        self._claims.look(now)
        return QueueView(
            tickets=tuple(self._ticket_views()),
            tenants=tuple(tenant_view(tenant, self._weights) for tenant in self._present.values()),
            slot_limit=self._capacity.slots,
            num_sequences_running=self._running.load.num_slots,
            tokens_per_second=self._estimator.pace.lately,
        )

    def check_integrity(self) -> None:
        """Sums are what they are sums of. For tests: looks at every request.

        Raises:
            AssertionError: they are not.
        """
        check_books(self._entries.values(), self._tenants.values(), self._door, self._queue, self._running)

    # How it is done.

    def _tenant(self, tenant_id: TenantId) -> TenantBooks:
        terms = self._read_tenant(tenant_id)
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            tenant = self._tenants[tenant_id] = TenantBooks(terms, self._everybody)
            self._rest(tenant)
        tenant.terms = terms
        return tenant

    def _learn(self, entry: Entry, demand: Demand) -> None:
        """What a request needs, now that it is tokenised."""
        habits = entry.tenant.habits
        if demand.num_prompt_tokens is not None:
            habits.joined(demand.num_prompt_tokens)
        entry.demand = demand
        entry.flow.at_door.add(entry.work, -1)
        entry.work = entry.tenant.expected_work(demand, self._weights)
        entry.flow.at_door.add(entry.work)
        entry.num_prompt_tokens = habits.expected_prompt(demand)

    def _leave_queue(self, entry: Entry) -> None:
        self._queue.of(entry.flow).remove(entry)
        self._door.enter_tokens(entry, -1)
        self._door.enter(entry, -1)

    def _leave_engine(self, entry: Entry) -> None:
        if entry.has_begun and entry.demand is not None and not entry.is_cut:
            entry.tenant.habits.ended(entry.num_output_tokens, entry.demand.num_sequences)
        self._running.release(entry)
        self._capacity.request_ended()

    def _come(self, tenant: TenantBooks, now: float) -> None:
        if tenant.terms.id not in self._present:
            self._claims.come(self._present.values(), now)
            self._present[tenant.terms.id] = tenant
            self._idle.pop(tenant.terms.id, None)

    def _rest(self, tenant: TenantBooks) -> None:
        """It has nothing here. Of those, the ones that have been idle for longest are forgotten."""
        self._idle[tenant.terms.id] = None
        if len(self._idle) > _MOST_IDLE_TENANTS:
            longest_idle = next(iter(self._idle))
            del self._idle[longest_idle], self._tenants[longest_idle]

    def _forget(self, entry: Entry, now: float) -> None:
        """It is over."""
        entry.is_over = True
        self._deadlines.forget(entry)
        self._num_urgent -= entry.arrival.service_class is not ServiceClass.BATCH
        tenant = entry.tenant
        if tenant.is_idle:
            del self._present[tenant.terms.id]
            self._claims.go(tenant, self._present.values(), now)
            self._rest(tenant)

    def _expire(self, now: float) -> list[Entry]:
        passed = [entry for entry in self._deadlines.passed(now) if entry.stage is not Stage.AT_THE_DOOR]
        for entry in passed:
            entry.is_cut = True
            self.leave(entry.ticket, now)
        return passed

    def _measure_pace(self, now: float) -> None:
        self._estimator.pace.observe(
            self._running.served_cost,
            now,
            is_busy=self._running.load.num_requests > 0,
            is_full=not self._queue.is_empty,
        )

    def _wait_seconds(self, entry: Entry, own: Work) -> float | None:
        """`own`: what the tenant has in the class before this request."""
        ahead = self._queue.ahead_of(entry.flow, own)
        return self._estimator.wait_seconds(entry.flow, own, ahead, self._num_free_slots(entry))

    def _num_free_slots(self, entry: Entry) -> int:
        return self._letting_in.free_slots(entry, self._running.load_now, self._weight_of_all())

    def _weight_of_all(self) -> float:
        return sum(tenant.terms.weight for tenant in self._present.values())

    def _outlook(self, entry: Entry, own: Work, ahead: Work, num_free_slots: int) -> Outlook:
        wait_seconds = self._estimator.wait_seconds(entry.flow, own, ahead, num_free_slots)
        return Outlook(1 + round(ahead.num_requests), wait_seconds)

    def _ticket_views(self) -> Iterator[TicketView]:
        load, weights = self._running.load_now, self._weight_of_all()
        yield from map(ticket_view, self._running.entries.values())
        for queue in self._queue.classes:
            lineup = Lineup(queue, self._queue.before(queue))
            for flow in queue.flows.values():
                yield from self._views_of_waiting(flow, lineup, load, weights)
        yield from (ticket_view(entry) for entry in self._entries.values() if entry.stage is Stage.AT_THE_DOOR)

    def _views_of_waiting(self, flow: Flow, lineup: Lineup, load: Load, weights: float) -> Iterator[TicketView]:
        own = Work()
        num_free_slots = self._letting_in.free_slots(flow.entries[0], load, weights)
        for entry in flow.entries:
            outlook = self._outlook(entry, own, lineup.ahead_of(flow, own), num_free_slots)
            own.add(entry.work)
            yield ticket_view(entry, outlook, self._why(entry, load, weights))

    def _why(self, entry: Entry, load: Load, weights: float) -> str:
        if not entry.tenant.may_run_more:
            return "its tenant's concurrency"
        obstacle = self._letting_in.obstacle(entry, load, weights)
        return "requests before it" if obstacle is None else obstacle.value
