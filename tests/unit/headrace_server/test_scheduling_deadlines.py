"""Which deadlines have passed."""

from headrace_server.domain import ServiceClass, Tenant, TenantId
from headrace_server.queueing import Arrival, TicketId
from headrace_server.scheduling.costs import Habits
from headrace_server.scheduling.deadlines import Deadlines
from headrace_server.scheduling.fair_queue import Entry, TenantBooks

BOOKS = TenantBooks(Tenant(TenantId("t")), Habits())


def entry(deadline: float | None) -> Entry:
    arrival = Arrival(TenantId("t"), ServiceClass.STANDARD, 0, deadline)
    return Entry(TicketId(1), arrival, BOOKS.flows[1], 1, 0.0)


def test_they_pass_in_order_and_once() -> None:
    deadlines = Deadlines()
    late, early, never = entry(3.0), entry(1.0), entry(None)
    for one in (late, early, never):
        deadlines.watch(one)
    assert deadlines.next_time() == 1.0
    assert deadlines.passed(0.9) == []
    assert deadlines.passed(5.0) == [early, late]
    assert deadlines.passed(5.0) == []
    assert deadlines.next_time() is None


def test_one_that_is_watched_twice_passes_once_and_may_be_watched_again() -> None:
    deadlines = Deadlines()
    one = entry(1.0)
    deadlines.watch(one)
    deadlines.watch(one)
    assert deadlines.passed(1.0) == [one]
    deadlines.watch(one)
    assert deadlines.passed(1.0) == [one]


def test_those_that_are_over_do_not_pass_and_take_no_room() -> None:
    deadlines = Deadlines()
    entries = [entry(1000.0 + n) for n in range(100)]
    for one in entries:
        deadlines.watch(one)
    for one in entries[:99]:
        one.is_over = True
        deadlines.forget(one)
    assert deadlines.next_time() == 1099.0
    assert len(deadlines) < 10
    assert deadlines.passed(2000.0) == [entries[99]]
