"""Whether the running sums of the request batcher's policy are what they are sums of."""

from collections.abc import Collection, Iterable

from headrace_server.queueing import Stage
from headrace_server.scheduling.costs import Work
from headrace_server.scheduling.door import Door
from headrace_server.scheduling.fair_queue import Entry, FairQueue, TenantBooks
from headrace_server.scheduling.load import Load
from headrace_server.scheduling.running import Running, held_by


def check_books(
    entries: Collection[Entry], tenants: Iterable[TenantBooks], door: Door, queue: FairQueue, running: Running
) -> None:
    """Raises AssertionError if anything differs."""
    at_door, waiting, in_engine = (
        [entry for entry in entries if entry.stage is stage]
        for stage in (Stage.AT_THE_DOOR, Stage.WAITING, Stage.RUNNING)
    )
    _check(door.num_requests, len(at_door) + len(waiting))
    _check(door.num_bytes, sum(entry.arrival.num_bytes for entry in (*at_door, *waiting)))
    _check(door.num_tokens, sum(entry.num_prompt_tokens for entry in waiting))
    _check(set(running.entries), {entry.ticket for entry in in_engine})
    load = Load()
    for entry in in_engine:
        load.add(held_by(entry))
    _check(running.load, load)
    _check(
        sorted(entry.order for q in queue.classes for f in q.flows.values() for entry in f.entries), _orders(waiting)
    )
    for queue_of_class in queue.classes:
        _check(queue_of_class.waiting, _work(e for f in queue_of_class.flows.values() for e in f.entries))
    for tenant in tenants:
        _check_tenant(tenant, at_door, in_engine)


def _check_tenant(tenant: TenantBooks, at_door: Iterable[Entry], in_engine: Iterable[Entry]) -> None:
    own = [entry for entry in in_engine if entry.tenant is tenant]
    _check(tenant.num_running, len(own))
    _check(tenant.num_slots, sum(entry.num_slots for entry in own))
    _check(tenant.num_prefill_tokens, sum(entry.num_prefill_tokens for entry in own))
    _check(tenant.num_output_tokens, sum(entry.num_output_tokens for entry in own))
    for flow in tenant.flows:
        _check(flow.waiting, _work(flow.entries))
        _check(flow.at_door, _work(entry for entry in at_door if entry.flow is flow))


def _work(entries: Iterable[Entry]) -> Work:
    total = Work()
    for entry in entries:
        total.add(entry.work)
    return total


def _orders(entries: Iterable[Entry]) -> list[int]:
    return sorted(entry.order for entry in entries)


def _check(found: object, expected: object) -> None:
    if found != expected:
        raise AssertionError(f"{found} in the books, {expected} there")
