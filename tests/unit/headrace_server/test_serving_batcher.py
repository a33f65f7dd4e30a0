"""The batcher carries out what its policy decides, tells it of everything once, and loses no request."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from headrace_server.domain import (
    Caller,
    Demand,
    EngineCapacity,
    EngineRequest,
    EngineStats,
    ModelId,
    Operation,
    RequestId,
    ServiceClass,
    Tenant,
    TenantId,
)
from headrace_server.errors import Contended, DeadlineExpired, EngineDied, QuotaExceeded, RequestError
from headrace_server.observability.request_metrics import RequestMetrics
from headrace_server.queueing import Outlook, Refusal, RefusalReason, Stage, TicketId
from headrace_server.serving.accounts import Accounts
from headrace_server.serving.admission import RequestSeat
from headrace_server.serving.batcher import Batcher
from headrace_server.serving.refusals import Refusals
from tests.fakes.engine import FakeEngine
from tests.fakes.queue_policy import FirstCome
from tests.fakes.virtual_loop import now, turns, virtually

A, B = ModelId("a"), ModelId("b")
TENANT = TenantId("mill")
CAPACITY = EngineCapacity(8, 2048, 10_000)
DEMAND = Demand(5, 10)


class Bucket:
    """Quotas that a test may empty.

    Attributes:
        error: raised at the door.
        spent: every spending.
    """

    def __init__(self) -> None:
        self.error: QuotaExceeded | None = None
        self.spent: list[int] = []

    def check(self, tenant: TenantId, now: float) -> None:
        assert tenant == TENANT
        if self.error is not None:
            raise self.error

    def spend(self, tenant: TenantId, num_tokens: int, now: float) -> None:
        assert tenant == TENANT
        self.spent.append(num_tokens)


class Book:
    """A ledger: its entries."""

    def __init__(self) -> None:
        self.entries: list[tuple[TenantId, ModelId, int, int, int]] = []

    def add(self, tenant: TenantId, model: ModelId, computed: int, cached: int, output: int, /) -> None:
        self.entries.append((tenant, model, computed, cached, output))


class Guest:
    """A request on its way: its place, its seat, and what it was told.

    Attributes:
        cuts: errors that it was to end with.
        num_restarts: how often it was to begin again.
    """

    def __init__(self, house: "House", request: EngineRequest) -> None:
        self.cuts: list[RequestError] = []
        self.num_restarts = 0
        self.place = house.batcher.enter(request, self)
        self.seat = RequestSeat(self.place)

    def cut(self, error: RequestError) -> None:
        self.cuts.append(error)

    def restart(self) -> None:
        self.num_restarts += 1

    def board(self, engine: FakeEngine) -> "Guest":
        self.place.board(engine, CAPACITY)
        return self

    def join(self, demand: Demand = DEMAND) -> asyncio.Task[None]:
        return asyncio.create_task(self.seat.take(demand))

    def leave(self) -> None:
        self.seat.release()


class House:
    """A batcher on policies of one model each, and an engine."""

    def __init__(self, limit: int = 1, *, tokens_per_minute: int | None = None) -> None:
        self.engine = FakeEngine()
        self.policies: list[FirstCome] = []
        self.bucket, self.book = Bucket(), Book()
        self.metrics = RequestMetrics([TENANT])
        self._limit = limit
        accounts = Accounts(
            lambda id: Tenant(id, tokens_per_minute=tokens_per_minute),
            quotas=self.bucket,
            ledger=self.book,
            metrics=self.metrics,
        )
        self.batcher = Batcher(self._policy, accounts, Refusals(random.Random(1)))

    def _policy(self) -> FirstCome:
        self.policies.append(FirstCome(self._limit))
        return self.policies[-1]

    @property
    def policy(self) -> FirstCome:
        return self.policies[0]

    def enter(self, **terms: object) -> Guest:
        """A guest at the door."""
        return Guest(self, request(**terms))

    async def waiting(self, **terms: object) -> tuple[Guest, asyncio.Task[None]]:
        """One that has joined, and has been let in or not."""
        guest = self.enter(**terms).board(self.engine)
        taking = guest.join()
        await turns()
        return guest, taking

    async def leave(self, *guests: Guest) -> None:
        """They go, and nothing is left of anybody."""
        for guest in guests:
            guest.leave()
        await turns()
        assert self.batcher.num_places == 0
        assert all(policy.num_tickets == 0 for policy in self.policies)
        self.batcher.check_integrity()


def request(**terms: object) -> EngineRequest:
    plain = EngineRequest(Operation.CHAT, A, RequestId("r"), Caller(TENANT), {"model": A}, num_bytes=7)
    return replace(plain, **terms)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ the door


@virtually
async def test_the_policy_hears_of_a_request_what_it_needs_to_know() -> None:
    house = House()
    guests = [
        house.enter(service_class=ServiceClass.BATCH, deadline=1010.0),
        house.enter(stream=True),
    ]
    batch, stream = house.policy.arrivals.values()
    assert (batch.tenant, batch.service_class, batch.num_bytes) == (TENANT, ServiceClass.BATCH, 7)
    assert (batch.deadline, batch.can_restart) == (1010.0, True)
    assert (stream.deadline, stream.can_restart) == (None, False)
    await house.leave(*guests)


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (RefusalReason.QUEUE_FULL, Contended),
        (RefusalReason.TENANT_QUEUE_FULL, Contended),
        (RefusalReason.WAIT_TOO_LONG, Contended),
        (RefusalReason.DEADLINE_UNMEETABLE, Contended),
        (RefusalReason.DEADLINE_EXPIRED, DeadlineExpired),
    ],
)
@virtually
async def test_who_is_refused_at_the_door_is_told_why_and_leaves_nothing(
    reason: RefusalReason, error: type[RequestError]
) -> None:
    house = House()
    house.enter().leave()
    house.policy.door = lambda _arrival: Refusal(reason, 2.0)
    with pytest.raises(error) as caught:
        house.enter()
    assert caught.value.code == reason
    await house.leave()
    assert house.metrics.meters(A, ServiceClass.STANDARD, TENANT).refused == {reason: 1}


@virtually
async def test_a_tenant_without_tokens_left_is_refused_before_the_policy_hears_of_it() -> None:
    house = House()
    house.bucket.error = QuotaExceeded(
        "no", limit_tokens=60, remaining_tokens=0, reset_seconds=60, retry_after_seconds=1
    )
    for operation in Operation:
        with pytest.raises(QuotaExceeded):
            house.enter(operation=operation)
    assert house.policy.told == []
    assert house.metrics.meters(A, ServiceClass.STANDARD, TENANT).refused == {"quota_exceeded": len(Operation)}


@pytest.mark.parametrize("operation", [Operation.TOKENIZE, Operation.DETOKENIZE, Operation.COUNT_TOKENS])
@virtually
async def test_what_computes_no_prompt_needs_no_turn(operation: Operation) -> None:
    house = House(limit=0)
    guest = house.enter(operation=operation).board(house.engine)
    await guest.join(Demand(0, 0))
    assert house.policy.told == []
    assert (guest.place.queue_seconds, guest.place.outlook()) == (None, None)
    assert house.batcher.num_places == 1
    await house.leave(guest)


@virtually
async def test_each_model_has_a_queue_of_its_own() -> None:
    house = House(limit=1)
    first, _ = await house.waiting(model=A)
    second, taking = await house.waiting(model=B)
    assert taking.done()
    assert len(house.policies) == 2
    await house.leave(first, second)


# ----------------------------------------------------------------------------------------------------- the queue


@virtually
async def test_requests_are_let_in_in_the_policys_order_as_others_leave() -> None:
    house = House(limit=2)
    guests, taking = zip(*[await house.waiting() for _ in range(4)], strict=True)
    assert [task.done() for task in taking] == [True, True, False, False]
    guests[1].leave()
    await turns()
    assert [task.done() for task in taking] == [True, True, True, False]
    assert list(house.policy.demands.values()) == [DEMAND] * 4
    guests[0].leave()
    await turns()
    assert taking[3].done()
    await house.leave(*guests)


@virtually
async def test_whom_the_policy_favours_has_a_seat_that_says_so_until_it_is_let_in_again() -> None:
    house = House(limit=2)
    house.enter().leave()
    house.policy.favoured = {TicketId(2)}
    (one, taking), (other, _) = await house.waiting(), await house.waiting()
    assert (one.seat.is_favoured, other.seat.is_favoured) == (True, False)
    house.policy.favoured = set()
    one.seat.go_back()
    await asyncio.gather(one.join(), taking)
    assert not one.seat.is_favoured
    await house.leave(one, other)


@virtually
async def test_whoever_joins_beside_a_free_slot_waits_for_no_time_to_pass() -> None:
    house = House()
    guest, taking = await house.waiting()
    assert (taking.done(), now(), guest.place.queue_seconds) == (True, 1000.0, 0.0)
    await house.leave(guest)


@virtually
async def test_what_happens_in_one_turn_of_the_loop_is_decided_at_once() -> None:
    house = House(limit=3)
    guests = [house.enter().board(house.engine) for _ in range(3)]
    taking = [guest.join() for guest in guests]
    await asyncio.gather(*taking)
    assert house.policy.num_decisions == 1
    await house.leave(*guests)


@virtually
async def test_while_somebody_waits_the_policy_is_asked_every_50_ms_and_shown_the_engine() -> None:
    house = House(limit=0)
    guest, taking = await house.waiting()
    house.engine.current = EngineStats(num_steps_total=7)
    num_before = house.policy.num_decisions
    await asyncio.sleep(1.01)
    assert house.policy.num_decisions - num_before == 20
    assert house.policy.observed[-1] == house.engine.current
    house.policy.limit = 1
    await asyncio.sleep(0.05)
    assert taking.done()
    num_before = house.policy.num_decisions
    await asyncio.sleep(10)
    assert house.policy.num_decisions == num_before
    await house.leave(guest)


@virtually
async def test_a_token_asks_nobody_and_a_prompt_that_is_done_does() -> None:
    house = House()
    running, _ = await house.waiting()
    waiting, _ = await house.waiting()
    num_before = house.policy.num_decisions
    running.seat.generated(1)
    await turns()
    assert house.policy.num_decisions == num_before
    running.seat.began(5, 0)
    await turns()
    assert house.policy.num_decisions == num_before + 1
    await house.leave(running, waiting)


@virtually
async def test_what_the_engine_says_reaches_the_policy_under_the_requests_ticket() -> None:
    house = House(limit=2)
    guests = [(await house.waiting())[0] for _ in range(2)]
    guests[1].seat.began(3, 2)
    guests[1].seat.generated(4)
    assert house.policy.sayings == [(2, 3, 2), (2, 4)]
    await house.leave(*guests)


@virtually
async def test_a_request_that_waits_is_told_its_place_and_how_long_it_has_waited() -> None:
    house = House()
    running, _ = await house.waiting()
    first, _ = await house.waiting()
    second, taking = await house.waiting()
    assert running.place.outlook() is None
    assert [guest.place.outlook() for guest in (first, second)] == [Outlook(1, 2.0), Outlook(2, 2.0)]
    await asyncio.sleep(3)
    assert second.place.queue_seconds == pytest.approx(3.0)
    house.policy.limit = 3
    await asyncio.sleep(1)
    assert taking.done()
    assert second.place.queue_seconds == pytest.approx(3.05)
    assert second.place.outlook() is None
    await house.leave(running, first, second)


@virtually
async def test_a_request_that_is_refused_when_it_joins_hears_why() -> None:
    house = House()
    guest = house.enter().board(house.engine)
    house.policy.seat = lambda _demand: Refusal(RefusalReason.WAIT_TOO_LONG, 3.0)
    with pytest.raises(Contended) as caught:
        await guest.join()
    assert caught.value.code == "wait_too_long"
    assert guest.cuts == []
    await house.leave(guest)


@pytest.mark.parametrize("is_running", [True, False])
@virtually
async def test_a_waiting_request_that_leaves_withdraws_and_a_running_one_makes_room(is_running: bool) -> None:
    house = House(limit=int(is_running))
    guest, taking = await house.waiting()
    guest.leave()
    guest.leave()
    await asyncio.gather(taking, return_exceptions=True)
    assert taking.cancelled() is not is_running
    assert [what for what, _ in house.policy.told].count("leave") == 1
    await house.leave()


@virtually
async def test_a_policy_that_fails_once_is_asked_again() -> None:
    house = House(limit=0)
    guest, taking = await house.waiting()
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
    house.policy.limit, house.policy.failure = 1, ZeroDivisionError()
    await asyncio.sleep(0.06)
    assert (len(failures), taking.done()) == (1, False)
    await asyncio.sleep(0.05)
    assert taking.done()
    await house.leave(guest)


# ----------------------------------------------------------------------------------------------------- deadlines


@virtually
async def test_a_deadline_that_passes_in_the_queue_ends_the_wait_at_that_moment() -> None:
    house = House()
    running, _ = await house.waiting()
    late, taking = await house.waiting(deadline=1001.234)
    with pytest.raises(DeadlineExpired):
        await taking
    assert now() == pytest.approx(1001.234)
    assert late.cuts == []
    await house.leave(running, late)


@virtually
async def test_a_deadline_that_passes_under_way_cuts_the_request_at_that_moment_and_makes_room() -> None:
    house = House()
    late, taking = await house.waiting(deadline=1000.02)
    waiting, its_turn = await house.waiting()
    await asyncio.sleep(0.021)
    (error,) = late.cuts
    assert isinstance(error, DeadlineExpired)
    assert taking.done()
    late.seat.generated(1)  # what was on its way
    assert house.policy.sayings == []
    await turns()
    assert its_turn.done()
    await house.leave(late, waiting)


@virtually
async def test_a_deadline_counts_where_nobody_waits() -> None:
    house = House()
    late, _ = await house.waiting(deadline=1100.0)
    await asyncio.sleep(99)
    assert late.cuts == []
    await asyncio.sleep(1.01)
    assert len(late.cuts) == 1
    await house.leave(late)


# ------------------------------------------------------------------------------------------ preemption and engines


@virtually
async def test_whoever_is_to_give_way_is_told_and_comes_back_in_front() -> None:
    house = House()
    running, _ = await house.waiting()
    first, first_turn = await house.waiting()
    second, second_turn = await house.waiting()
    house.policy.to_preempt = [next(iter(house.policy.arrivals))]
    await asyncio.sleep(0.06)
    assert (running.num_restarts, first_turn.done()) == (1, False)
    running.seat.go_back()
    await turns()
    assert first_turn.done()
    again = running.join()
    await turns()
    first.leave()
    await turns()
    assert (again.done(), second_turn.done()) == (True, False)
    assert house.metrics.meters(A, ServiceClass.STANDARD, TENANT).num_preempted == 1
    await house.leave(running, second)


@virtually
async def test_the_policy_is_told_of_each_engine_once() -> None:
    house = House(limit=3)
    guests = [(await house.waiting())[0] for _ in range(3)]
    assert house.policy.capacities == [CAPACITY]
    await house.leave(*guests)
    other = FakeEngine()
    guest = house.enter().board(other)
    assert house.policy.capacities == [CAPACITY, CAPACITY]
    await house.leave(guest)


@virtually
async def test_when_an_engine_dies_those_who_wait_for_it_look_for_another_and_are_not_let_in_to_it() -> None:
    house = House()
    running, _ = await house.waiting()
    waiting, taking = await house.waiting()
    running.seat.lose_engine()
    with pytest.raises(EngineDied):
        await taking
    assert not waiting.seat.is_taken
    waiting.seat.lose_engine()
    assert [what for what, _ in house.policy.told].count("requeue") == 1
    num_before = house.policy.num_decisions
    await asyncio.sleep(1)
    assert house.policy.num_decisions == num_before  # nobody is let in where there is no engine
    house.engine = FakeEngine()
    again = [guest.board(house.engine).join() for guest in (running, waiting)]
    await turns()
    assert [task.done() for task in again] == [True, False]
    assert waiting.place.queue_seconds == pytest.approx(1.0)
    assert [what for what, _ in house.policy.told].count("join") == 3
    running.leave()
    await turns()
    assert again[1].done()
    await house.leave(waiting)


@virtually
async def test_a_request_whose_turn_comes_while_it_looks_for_another_engine_finds_it_there() -> None:
    house = House()
    running, _ = await house.waiting()
    waiting, taking = await house.waiting()
    running.seat.lose_engine()
    with pytest.raises(EngineDied):
        await taking
    waiting.seat.lose_engine()
    running.leave()
    house.engine = FakeEngine()
    newcomer = house.enter().board(house.engine)
    its_turn = newcomer.join()
    await turns()
    assert (len(house.policy.tickets(Stage.RUNNING)), its_turn.done()) == (1, False)
    await waiting.board(house.engine).join()
    await house.leave(waiting, newcomer)


@virtually
async def test_a_deadline_that_passes_while_a_request_looks_for_another_engine_cuts_it() -> None:
    house = House()
    running, _ = await house.waiting()
    waiting, taking = await house.waiting(deadline=1002.0)
    running.seat.lose_engine()
    with pytest.raises(EngineDied):
        await taking
    waiting.seat.lose_engine()
    await running.board(FakeEngine()).join()
    await asyncio.sleep(2.1)
    assert [type(error) for error in waiting.cuts] == [DeadlineExpired]
    await house.leave(running, waiting)


@virtually
async def test_a_request_that_is_tokenised_on_a_dead_engine_does_not_join_the_queue_of_the_next() -> None:
    house = House(limit=2)
    running, _ = await house.waiting()
    late = house.enter().board(house.engine)
    running.seat.lose_engine()
    with pytest.raises(EngineDied):
        await late.join()
    assert house.policy.tickets(Stage.WAITING) == []
    await house.leave(running, late)


@virtually
async def test_who_runs_on_an_engine_when_another_one_comes_runs_no_more() -> None:
    house = House(limit=2)
    unaware, _ = await house.waiting()
    newcomer = house.enter().board(FakeEngine())
    assert house.policy.tickets(Stage.RUNNING) == []
    unaware.seat.generated(1)
    unaware.seat.began(1, 0)
    assert house.policy.sayings == []
    await house.leave(unaware, newcomer)


# ------------------------------------------------------------------------------------------------------- accounts


@virtually
async def test_a_request_that_was_served_is_in_the_ledger_once_with_what_the_engine_did() -> None:
    house = House()
    guest, _ = await house.waiting()
    guest.seat.began(30, 12)
    guest.seat.generated(1)
    guest.seat.generated(4)
    assert house.book.entries == []
    guest.leave()
    guest.leave()
    assert house.book.entries == [(TENANT, A, 30, 12, 5)]
    await house.leave()


@virtually
async def test_a_request_that_never_came_in_is_not() -> None:
    house = House(limit=0)
    waiting, _ = await house.waiting()
    await house.leave(waiting, house.enter())
    assert house.book.entries == []


@virtually
async def test_quotas_are_spent_as_tokens_come_some_at_a_time_and_cached_ones_are_free() -> None:
    house = House(tokens_per_minute=100)
    guest, _ = await house.waiting()
    guest.seat.began(30, 12)
    guest.seat.generated(1)
    guest.seat.generated(4)
    assert house.bucket.spent == [30]
    for _ in range(27):
        guest.seat.generated(1)
    assert house.bucket.spent == [30, 16, 16]
    guest.seat.generated(3)
    await house.leave(guest)
    assert house.bucket.spent == [30, 16, 16, 3]
    without = House()
    guest, _ = await without.waiting()
    guest.seat.generated(1)
    assert without.bucket.spent == []
    await without.leave(guest)


@pytest.mark.parametrize("ending", [RequestSeat.go_back, RequestSeat.lose_engine])
@virtually
async def test_what_was_done_in_vain_is_not_the_tenants_to_pay(ending: Callable[[RequestSeat], None]) -> None:
    house = House(tokens_per_minute=100)
    guest, _ = await house.waiting()
    guest.seat.began(30, 0)
    guest.seat.generated(4)
    ending(guest.seat)
    assert sum(house.bucket.spent) == 0
    guest.board(FakeEngine())
    await guest.join()
    guest.seat.began(3, 27)
    guest.seat.generated(2)
    guest.leave()
    assert house.book.entries == [(TENANT, A, 3, 27, 2)]
    assert sum(house.bucket.spent) == 5
    await house.leave()


@virtually
async def test_times_and_tokens_are_metered() -> None:
    house = House()
    meters = house.metrics.meters(A, ServiceClass.STANDARD, TENANT)
    before, _ = await house.waiting()
    guest, _ = await house.waiting()
    await asyncio.sleep(2)
    before.leave()
    await turns()
    await asyncio.sleep(0.5)
    guest.seat.began(7, 2)
    for _ in range(3):
        guest.seat.generated(1)
        await asyncio.sleep(0.04)
    await house.leave(guest)
    assert (meters.num_computed_tokens, meters.num_cached_tokens, meters.num_output_tokens) == (7, 2, 3)
    assert meters.queue_wait.sum_seconds == pytest.approx(2.0)
    assert meters.ttft.count == 1
    assert meters.ttft.sum_seconds == pytest.approx(2.5)
    assert meters.itl.count == 2
    assert meters.itl.sum_seconds == pytest.approx(0.08)
    assert meters.service.count == 2
    assert meters.service.sum_seconds == pytest.approx(2.0 + 0.62)


@virtually
async def test_the_gaps_of_several_sequences_are_not_metered() -> None:
    house = House()
    meters = house.metrics.meters(A, ServiceClass.STANDARD, TENANT)
    guest = house.enter().board(house.engine)
    await guest.join(Demand(5, 10, num_sequences=2))
    guest.seat.generated(1)
    guest.seat.generated(1)
    assert (meters.ttft.count, meters.itl.count) == (1, 0)
    await house.leave(guest)


@virtually
async def test_who_waits_and_runs_is_counted_by_model_and_class() -> None:
    house = House()
    guests = [(await house.waiting(service_class=ServiceClass.BATCH))[0] for _ in range(3)]
    guests.append(house.enter())
    counts = house.batcher.counts()
    assert counts[A, ServiceClass.BATCH] == (2, 1)
    assert counts[A, ServiceClass.STANDARD] == (0, 0)
    await house.leave(*guests)
    assert set(house.batcher.counts().values()) == {(0, 0)}


@virtually
async def test_a_view_names_the_requests_behind_its_tickets() -> None:
    house = House()
    first, _ = await house.waiting(request_id=RequestId("one"))
    second, _ = await house.waiting(request_id=RequestId("two"))
    (view,) = house.batcher.views()
    assert (view.model, view.now) == (A, 1000.0)
    assert [(view.request_ids[shown.ticket], shown.stage) for shown in view.queue.tickets] == [
        ("one", Stage.RUNNING),
        ("two", Stage.WAITING),
    ]
    await house.leave(first, second)
