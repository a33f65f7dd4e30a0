"""What comes before many requests, beside what comes before each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.domain import ServiceClass, Tenant, TenantId
from headrace_server.queueing import Arrival, TicketId
from headrace_server.scheduling.costs import Habits, Work
from headrace_server.scheduling.fair_queue import Entry, FairQueue, TenantBooks
from headrace_server.scheduling.lineup import Lineup

WAITING = st.tuples(
    st.floats(0.1, 10.0),  # weight
    st.floats(0.0, 1e5),  # counter
    st.sampled_from(ServiceClass),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 500)), min_size=1, max_size=5),  # prompts, outputs
)


@given(st.lists(WAITING, min_size=1, max_size=12))
def test_it_is_the_same_however_it_is_looked_up(
    tenants: list[tuple[float, float, ServiceClass, list[tuple[int, int]]]],
) -> None:
    queue = filled(tenants)
    for of_class in queue.classes:
        lineup = Lineup(of_class, queue.before(of_class))
        for flow in of_class.flows.values():
            own = Work()
            for entry in flow.entries:
                one, many = queue.ahead_of(flow, own), lineup.ahead_of(flow, own)
                assert parts(many) == pytest.approx(parts(one), rel=1e-6, abs=1e-3)
                own.add(entry.work)


def filled(tenants: list[tuple[float, float, ServiceClass, list[tuple[int, int]]]]) -> FairQueue:
    queue, num_entries = FairQueue(), 0
    for number, (weight, counter, service_class, requests) in enumerate(tenants):
        tenant = TenantId(str(number))
        flow = TenantBooks(Tenant(tenant, weight=weight), Habits()).flows[service_class.rank]
        flow.virtual_tokens = counter
        for num_prompt, num_output in requests:
            num_entries += 1
            work = Work(1, num_prompt, num_output, num_prompt + 2 * num_output)
            entry = Entry(TicketId(num_entries), Arrival(tenant, service_class, 0), flow, num_entries, 0.0, work=work)
            queue.of(flow).add(entry)
    return queue


def parts(work: Work) -> tuple[float, ...]:
    return work.num_requests, work.num_computed_tokens, work.num_output_tokens, work.cost
