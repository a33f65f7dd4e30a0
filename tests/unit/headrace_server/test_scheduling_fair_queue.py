"""Who is next: counters, lifts and what comes before a request."""

import pytest

from headrace_server.domain import ServiceClass, Tenant, TenantId
from headrace_server.queueing import Arrival, TicketId
from headrace_server.scheduling.costs import Habits, Work
from headrace_server.scheduling.fair_queue import Entry, FairQueue, Flow, TenantBooks

STANDARD, INTERACTIVE, BATCH = ServiceClass.STANDARD, ServiceClass.INTERACTIVE, ServiceClass.BATCH


class Bench:
    """A queue, and tenants that put requests into it."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.num_entries = 0

    def flow(self, tenant: str, *, weight: float = 1.0, service_class: ServiceClass = STANDARD) -> Flow:
        books = TenantBooks(Tenant(TenantId(tenant), weight=weight), Habits())
        return books.flows[service_class.rank]

    def add(self, flow: Flow, cost: int = 100, *, order: int | None = None) -> Entry:
        self.num_entries += 1
        arrival = Arrival(flow.tenant.terms.id, flow.service_class, 0)
        order = self.num_entries if order is None else order
        entry = Entry(TicketId(self.num_entries), arrival, flow, order, 0.0, work=Work(1, cost, 0, cost))
        self.queue.of(flow).add(entry)
        return entry

    def remove(self, entry: Entry) -> None:
        self.queue.of(entry.flow).remove(entry)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_tenant_that_comes_back_has_no_credit_for_its_idle_time(bench: Bench) -> None:
    busy, idle = bench.flow("busy"), bench.flow("idle")
    bench.add(busy)
    busy.charge(1000.0)
    bench.add(idle)
    assert idle.virtual_tokens == 1000.0
    idle.charge(500.0)
    bench.add(idle)
    assert idle.virtual_tokens == 1500.0


def test_an_empty_queue_lifts_to_the_last_that_left_it(bench: Bench) -> None:
    last, newcomer = bench.flow("last"), bench.flow("newcomer")
    entry = bench.add(last)
    bench.remove(entry)
    last.charge(700.0)
    bench.add(newcomer)
    assert newcomer.virtual_tokens == 700.0


def test_nobody_is_ever_lowered(bench: Bench) -> None:
    rich, poor = bench.flow("rich"), bench.flow("poor")
    rich.charge(900.0)
    bench.add(poor)
    bench.add(rich)
    assert (rich.virtual_tokens, poor.virtual_tokens) == (900.0, 0.0)


def test_work_is_charged_by_weight_to_its_class_and_those_that_give_way_to_it() -> None:
    books = TenantBooks(Tenant(TenantId("t"), weight=2.0), Habits())
    books.flows[STANDARD.rank].charge(100.0)
    assert [flow.virtual_tokens for flow in books.flows] == [0.0, 50.0, 50.0]
    books.flows[INTERACTIVE.rank].charge(10.0)
    assert [flow.virtual_tokens for flow in books.flows] == [5.0, 55.0, 55.0]
    books.flows[BATCH.rank].charge(1.0)
    assert [flow.virtual_tokens for flow in books.flows] == [5.0, 55.0, 55.5]


def test_a_lift_in_one_class_leaves_the_standing_in_others(bench: Bench) -> None:
    greedy, modest = bench.flow("greedy", service_class=INTERACTIVE), bench.flow("modest")
    bench.add(greedy)
    greedy.charge(10_000.0)
    bench.add(modest)
    bench.add(modest.tenant.flows[INTERACTIVE.rank])
    assert [flow.virtual_tokens for flow in modest.tenant.flows] == [10_000.0, 0.0, 0.0]


def test_one_that_comes_again_is_before_its_tenants_others_in_order_of_arrival(bench: Bench) -> None:
    flow = bench.flow("t")
    waiting = bench.add(flow)
    second = bench.add(flow, order=-5)
    first = bench.add(flow, order=-9)
    assert flow.entries == [first, second, waiting]
    assert [flow.index(entry) for entry in flow.entries] == [0, 1, 2]


def test_all_of_its_own_and_all_that_is_more_urgent_comes_before_a_request(bench: Bench) -> None:
    mine = bench.flow("mine")
    bench.add(mine, 100)
    bench.add(bench.flow("urgent", service_class=INTERACTIVE), 40)
    bench.add(bench.flow("batch", service_class=BATCH), 9000)
    assert bench.queue.ahead_of(mine, mine.waiting).cost == 140


def test_of_other_tenants_comes_before_it_what_their_counters_leave_room_for(bench: Bench) -> None:
    mine, other, heavier = bench.flow("mine"), bench.flow("other"), bench.flow("heavier", weight=2.0)
    for flow in (mine, other, heavier):
        for _ in range(10):
            bench.add(flow, 100)
    own = Work(1, 100, 0, 100)
    ahead = bench.queue.ahead_of(mine, own)
    assert ahead.cost == pytest.approx(100 + 100 + 200)
    assert ahead.num_requests == pytest.approx(4)
    other.charge(1000.0)
    assert bench.queue.ahead_of(mine, own).cost == pytest.approx(100 + 200)


def test_no_more_of_others_comes_before_it_than_they_have(bench: Bench) -> None:
    mine, other = bench.flow("mine"), bench.flow("other")
    bench.add(mine)
    bench.add(other, 50)
    assert bench.queue.ahead_of(mine, Work(1, 10_000, 0, 10_000)).cost == 10_050


def test_sums_are_nothing_once_everybody_has_left(bench: Bench) -> None:
    flow = bench.flow("t")
    entries = [bench.add(flow, cost) for cost in (3, 5, 7)]
    for entry in entries:
        bench.remove(entry)
    assert flow.waiting == bench.queue.of(flow).waiting == Work()
    assert bench.queue.is_empty
