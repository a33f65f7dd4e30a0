"""The request batcher's policy through whatever happens: requests, tokens, refusals, deaths of engines, in any order.

The test keeps books of its own and holds every decision against them.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace_server.domain import Demand, EngineCapacity, ServiceClass, Tenant, TenantId
from headrace_server.queueing import Arrival, RefusalReason, Stage, TicketId
from headrace_server.scheduling.batching import FairBatching, QueueOptions

SLOTS = 8
KV_TOKENS = 2000
MAX_REQUESTS = 12
TERMS = {
    TenantId("a"): Tenant(TenantId("a"), weight=1.0),
    TenantId("b"): Tenant(TenantId("b"), weight=3.0, max_concurrency=2),
    TenantId("c"): Tenant(TenantId("c"), weight=0.5, queue_share=0.5),
}


class Request:
    """What the test knows of one."""

    def __init__(self, arrival: Arrival, demand: Demand) -> None:
        self.arrival = arrival
        self.demand = demand
        self.stage = Stage.AT_THE_DOOR
        self.has_begun = False
        self.num_preemptions = 0
        self.is_to_go = False

    @property
    def num_slots(self) -> int:
        return min(SLOTS, self.demand.num_sequences)


class QueueUnderThePolicy(RuleBasedStateMachine):
    """See the module. An admitted request runs, a refused one has left, one that is to go does so some time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.requests: dict[TicketId, Request] = {}
        self.num_tickets = 0
        options = QueueOptions(max_requests=MAX_REQUESTS, max_tokens=4000, max_bytes=4000)
        self.policy = FairBatching(options, TERMS.__getitem__)
        self.policy.engine_changed(EngineCapacity(SLOTS, 200, KV_TOKENS), self.now)

    def of(self, *stages: Stage) -> list[TicketId]:
        return [ticket for ticket, request in self.requests.items() if request.stage in stages]

    @rule(
        tenant=st.sampled_from(sorted(TERMS)),
        service_class=st.sampled_from(ServiceClass),
        num_bytes=st.integers(0, 1500),
        num_prompt_tokens=st.none() | st.integers(1, 900),
        num_sequences=st.integers(1, 10),
        patience=st.none() | st.floats(0.0, 20.0),
        can_restart=st.booleans(),
        at_once=st.booleans(),
    )
    def arrive(
        self,
        tenant: TenantId,
        service_class: ServiceClass,
        num_bytes: int,
        num_prompt_tokens: int | None,
        num_sequences: int,
        patience: float | None,
        can_restart: bool,
        at_once: bool,
    ) -> None:
        self.num_tickets += 1
        ticket = TicketId(self.num_tickets)
        deadline = None if patience is None else self.now + patience
        arrival = Arrival(tenant, service_class, num_bytes, deadline, can_restart)
        queued = self.of(Stage.AT_THE_DOOR, Stage.WAITING)
        refusal = self.policy.arrive(ticket, arrival, self.now)
        if not queued:
            assert refusal is None or refusal.reason is RefusalReason.DEADLINE_EXPIRED
        if refusal is None:
            assert len(queued) < MAX_REQUESTS or not queued
            self.requests[ticket] = Request(arrival, Demand(num_prompt_tokens, None, num_sequences))
            if at_once:
                self.join(ticket)

    @precondition(lambda self: self.of(Stage.AT_THE_DOOR))
    @rule(data=st.data())
    def tokenised(self, data: st.DataObject) -> None:
        self.join(data.draw(st.sampled_from(self.of(Stage.AT_THE_DOOR))))

    def join(self, ticket: TicketId) -> None:
        request = self.requests[ticket]
        refusal = self.policy.join(ticket, request.demand, self.now)
        if refusal is None:
            request.stage = Stage.WAITING
        else:
            assert request.num_preemptions == 0 or refusal.reason is RefusalReason.DEADLINE_EXPIRED
            self.leave(ticket)

    @precondition(lambda self: self.of(Stage.RUNNING))
    @rule(data=st.data(), num_cached=st.integers(0, 100), num_tokens=st.integers(1, 60))
    def compute(self, data: st.DataObject, num_cached: int, num_tokens: int) -> None:
        ticket = data.draw(st.sampled_from(self.of(Stage.RUNNING)))
        request = self.requests[ticket]
        num_prompt_tokens = request.demand.num_prompt_tokens or 50
        if not request.has_begun:
            request.has_begun = True
            num_cached = min(num_cached, num_prompt_tokens)
            self.policy.began(ticket, num_prompt_tokens - num_cached, num_cached, self.now)
        self.policy.generated(ticket, num_tokens, self.now)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.leave(data.draw(st.sampled_from(sorted(self.requests))))

    @rule(seconds=st.floats(0.01, 5.0))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: any(request.is_to_go for request in self.requests.values()))
    @rule()
    def preempted_ones_go(self) -> None:
        for ticket in [ticket for ticket, request in self.requests.items() if request.is_to_go]:
            self.requeue(ticket)
            self.requests[ticket].num_preemptions += 1

    @rule()
    def engine_dies(self) -> None:
        for ticket in self.of(Stage.RUNNING):
            self.requeue(ticket)
        self.policy.engine_changed(EngineCapacity(SLOTS, 200, KV_TOKENS), self.now)

    def requeue(self, ticket: TicketId) -> None:
        request = self.requests[ticket]
        self.policy.requeue(ticket, self.now)
        request.stage, request.has_begun, request.is_to_go = Stage.AT_THE_DOOR, False, False

    def leave(self, ticket: TicketId) -> None:
        self.policy.leave(ticket, self.now)
        self.policy.leave(ticket, self.now)  # a second time does nothing
        del self.requests[ticket]

    @rule()
    def decide(self) -> None:
        decisions = self.policy.decide(self.now)
        for ticket, refusal in decisions.refuse:
            request = self.requests.pop(ticket)
            assert refusal.reason is RefusalReason.DEADLINE_EXPIRED
            assert request.stage is not Stage.AT_THE_DOOR
            assert request.arrival.deadline is not None
            assert request.arrival.deadline <= self.now
        for ticket in decisions.admit:
            self.admitted(ticket)
        for ticket in decisions.preempt:
            self.named_for_preemption(ticket)
        deadlines = [
            request.arrival.deadline
            for request in self.requests.values()
            if request.stage is not Stage.AT_THE_DOOR and request.arrival.deadline is not None
        ]
        assert all(deadline > self.now for deadline in deadlines)
        if deadlines:
            assert decisions.look_again_at is not None
            assert decisions.look_again_at <= min(deadlines)
        again = self.policy.decide(self.now)
        assert (again.admit, again.refuse, again.preempt) == ((), (), ())
        self.nobody_waits_beside_an_idle_engine()

    def admitted(self, ticket: TicketId) -> None:
        request = self.requests[ticket]
        running = [self.requests[other] for other in self.of(Stage.RUNNING)]
        assert request.stage is Stage.WAITING
        assert request.arrival.deadline is None or request.arrival.deadline > self.now
        assert not running or sum(other.num_slots for other in running) + request.num_slots <= SLOTS + 1
        limit = TERMS[request.arrival.tenant].max_concurrency
        own = [other for other in running if other.arrival.tenant == request.arrival.tenant]
        assert limit is None or len(own) < limit
        request.stage = Stage.RUNNING

    def named_for_preemption(self, ticket: TicketId) -> None:
        request = self.requests[ticket]
        assert request.stage is Stage.RUNNING
        assert request.arrival.service_class is ServiceClass.BATCH
        assert request.arrival.can_restart
        assert request.num_preemptions < 3
        assert not request.is_to_go
        request.is_to_go = True

    def nobody_waits_beside_an_idle_engine(self) -> None:
        assert self.of(Stage.RUNNING) or not self.of(Stage.WAITING)

    @invariant()
    def every_request_is_where_it_should_be(self) -> None:
        view = self.policy.view(self.now)
        assert {ticket.ticket: ticket.stage for ticket in view.tickets} == {
            ticket: request.stage for ticket, request in self.requests.items()
        }
        running = [self.requests[ticket] for ticket in self.of(Stage.RUNNING)]
        assert view.num_sequences_running == sum(request.num_slots for request in running)
        for tenant in view.tenants:
            own = [r for r in self.requests.values() if r.arrival.tenant == tenant.tenant]
            assert tenant.num_waiting == sum(request.stage is Stage.WAITING for request in own)
            assert tenant.num_running == sum(request.stage is Stage.RUNNING for request in own)
        for seen in view.tickets:
            outlook = self.policy.outlook(seen.ticket, self.now)
            assert (outlook is not None) is (seen.stage is Stage.WAITING)
            assert bool(seen.why) is (seen.stage is Stage.WAITING)

    @invariant()
    def the_books_balance(self) -> None:
        self.policy.check_integrity()

    def teardown(self) -> None:
        for ticket in list(self.requests):
            self.leave(ticket)
        self.policy.check_integrity()
        view = self.policy.view(self.now)
        assert (view.tickets, view.tenants, view.num_sequences_running) == ((), (), 0)


TestQueueUnderThePolicy = QueueUnderThePolicy.TestCase
TestQueueUnderThePolicy.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
