"""The request batcher's policy, case by case."""

from dataclasses import replace

import pytest

from headrace_server.domain import Demand, EngineCapacity, EngineStats, ServiceClass, Tenant, TenantId
from headrace_server.queueing import Arrival, Outlook, QueuePolicy, Refusal, RefusalReason, Stage, TicketId
from headrace_server.scheduling import batching
from headrace_server.scheduling.batching import FairBatching, QueueOptions

STANDARD, INTERACTIVE, BATCH = ServiceClass.STANDARD, ServiceClass.INTERACTIVE, ServiceClass.BATCH


class Desk:
    """A policy before an engine of so many slots; whatever it admits runs."""

    def __init__(self, num_slots: int = 1, options: QueueOptions | None = None, **terms: Tenant) -> None:
        self.now = 100.0
        self.running: list[TicketId] = []
        self.stats = EngineStats()
        self._num_tickets = 0
        options = QueueOptions() if options is None else options
        self.policy = FairBatching(options, lambda tenant: terms.get(tenant, Tenant(tenant)))
        self.policy.engine_changed(EngineCapacity(num_slots, 1000, 100_000), self.now)

    def arrive(
        self,
        tenant: str = "t",
        service_class: ServiceClass = STANDARD,
        *,
        num_bytes: int = 10,
        deadline: float | None = None,
        can_restart: bool = False,
    ) -> tuple[TicketId, Refusal | None]:
        self._num_tickets += 1
        ticket = TicketId(self._num_tickets)
        arrival = Arrival(TenantId(tenant), service_class, num_bytes, deadline, can_restart)
        return ticket, self.policy.arrive(ticket, arrival, self.now)

    def send(
        self,
        tenant: str = "t",
        service_class: ServiceClass = STANDARD,
        *,
        num_prompt_tokens: int = 100,
        num_sequences: int = 1,
        deadline: float | None = None,
        can_restart: bool = False,
    ) -> TicketId:
        ticket, refusal = self.arrive(tenant, service_class, deadline=deadline, can_restart=can_restart)
        assert refusal is None
        assert self.policy.join(ticket, Demand(num_prompt_tokens, 50, num_sequences), self.now) is None
        return ticket

    def admitted(self) -> list[TicketId]:
        admitted = list(self.policy.decide(self.now).admit)
        self.running += admitted
        return admitted

    def serve(self, ticket: TicketId, num_prompt_tokens: int = 100, num_output_tokens: int = 50) -> None:
        """It has run, and is over."""
        self.policy.began(ticket, num_prompt_tokens, 0, self.now)
        self.policy.generated(ticket, num_output_tokens, self.now)
        self.leave(ticket)

    def leave(self, ticket: TicketId) -> None:
        self.policy.leave(ticket, self.now)
        self.running.remove(ticket)

    def measure(self, *, step_seconds: float = 1.0, num_steps: int = 20) -> None:
        """The engine takes so long for each step, whatever is in it."""
        self.policy.observe(self.stats, self.now)
        for _ in range(num_steps):
            self.stats = replace(
                self.stats,
                num_steps_total=self.stats.num_steps_total + 1,
                step_seconds_total=self.stats.step_seconds_total + step_seconds,
                decode_tokens_total=self.stats.decode_tokens_total + 1,
            )
            self.policy.observe(self.stats, self.now)

    def virtual_tokens(self, tenant: str) -> float:
        return next(view.virtual_tokens for view in self.policy.view(self.now).tenants if view.tenant == tenant)


def test_it_is_a_queue_policy() -> None:
    policy: QueuePolicy = FairBatching(QueueOptions(), Tenant)
    assert policy.decide(0.0).admit == ()


# Order.


def test_urgent_ones_go_first_and_each_tenants_in_order_of_arrival() -> None:
    desk = Desk()
    batch, first, second, urgent = desk.send("t", BATCH), desk.send(), desk.send(), desk.send("t", INTERACTIVE)
    order = []
    for _ in range(4):
        (ticket,) = desk.admitted()
        order.append(ticket)
        desk.serve(ticket)
    assert order == [urgent, first, second, batch]


def test_tenants_take_turns_by_what_they_were_served() -> None:
    desk = Desk(heavy=Tenant(TenantId("heavy"), weight=2.0))
    tickets = {desk.send(tenant): tenant for _ in range(6) for tenant in ("light", "heavy")}
    order = []
    for _ in range(9):
        (ticket,) = desk.admitted()
        order.append(tickets[ticket])
        desk.serve(ticket)
    assert order.count("heavy") == 6


def test_a_tenant_whose_concurrency_is_used_up_keeps_nobody_waiting() -> None:
    desk = Desk(8, one=Tenant(TenantId("one"), max_concurrency=1))
    first, second = desk.send("one"), desk.send("one")
    batch = desk.send("other", BATCH)
    assert desk.admitted() == [first, batch]
    assert desk.policy.view(desk.now).tickets[-1].why == "its tenant's concurrency"
    desk.serve(first)
    assert desk.admitted() == [second]


def test_a_large_request_is_not_overtaken() -> None:
    desk = Desk(4)
    small = desk.send()
    assert desk.admitted() == [small]
    large = desk.send("large", num_sequences=4)
    desk.send("large")
    desk.send("other")
    assert desk.admitted() == []
    desk.serve(small)
    assert desk.admitted() == [large]


def test_light_tenants_overtake_a_large_request_until_they_have_had_a_steps_worth_more() -> None:
    desk = Desk(4)
    first = desk.send("busy")
    assert desk.admitted() == [first]
    large = desk.send("busy", num_sequences=4)
    tickets = [desk.send("light", num_prompt_tokens=400) for _ in range(20)]
    num_before = 0
    while large not in desk.running:
        for ticket in list(desk.running):
            if ticket != first:
                desk.serve(ticket, 400)
        num_before += len(desk.admitted())
        if num_before >= 3 and first in desk.running:
            desk.serve(first)
    assert num_before < len(tickets) / 2


def test_one_with_more_choices_than_slots_runs_alone() -> None:
    desk = Desk(4)
    assert desk.admitted() == []
    many = desk.send(num_sequences=100)
    assert desk.admitted() == [many]


# Charges.


def test_an_estimate_is_replaced_by_what_was_computed() -> None:
    desk = Desk(4)
    ticket = desk.send(num_prompt_tokens=200)
    desk.admitted()
    assert desk.virtual_tokens("t") == 200
    desk.policy.began(ticket, 50, 150, desk.now)
    assert desk.virtual_tokens("t") == pytest.approx(50 + 15)
    desk.policy.generated(ticket, 10, desk.now)
    assert desk.virtual_tokens("t") == pytest.approx(65 + 20)


def test_the_prompts_of_one_request_are_charged_one_by_one() -> None:
    desk = Desk(4)
    ticket = desk.send(num_prompt_tokens=200, num_sequences=2)
    desk.admitted()
    desk.policy.began(ticket, 0, 100, desk.now)
    assert desk.virtual_tokens("t") == pytest.approx(100 + 10)
    desk.policy.began(ticket, 100, 0, desk.now)
    assert desk.virtual_tokens("t") == pytest.approx(110)


def test_a_request_that_never_began_is_refunded() -> None:
    desk = Desk(4)
    gone, stays = desk.send(num_prompt_tokens=200), desk.send(num_prompt_tokens=30)
    assert desk.admitted() == [gone, stays]
    desk.leave(gone)
    assert desk.virtual_tokens("t") == 30


def test_what_a_tenant_was_served_is_shown_and_begins_anew_with_another_engine() -> None:
    desk = Desk(4)
    ticket = desk.send()
    desk.send()
    desk.admitted()
    desk.serve(ticket)
    assert desk.policy.view(desk.now).tenants[0].served_tokens == 200
    desk.policy.engine_changed(EngineCapacity(), desk.now)
    assert desk.policy.view(desk.now).tenants[0].served_tokens == 0


def test_unknown_tickets_are_ignored() -> None:
    policy = Desk().policy
    policy.leave(TicketId(9), 0.0)
    policy.generated(TicketId(9), 1, 0.0)
    policy.began(TicketId(9), 1, 0, 0.0)
    policy.requeue(TicketId(9), 0.0)
    assert policy.outlook(TicketId(9), 0.0) is None


# The door.


@pytest.mark.parametrize(
    ("options", "num_bytes"), [(QueueOptions(max_requests=2), 1), (QueueOptions(max_bytes=1000), 400)]
)
def test_a_full_queue_refuses(options: QueueOptions, num_bytes: int) -> None:
    desk = Desk(options=options)
    refusals = [desk.arrive(num_bytes=num_bytes)[1] for _ in range(3)]
    assert refusals == [None, None, Refusal(RefusalReason.QUEUE_FULL)]


def test_an_empty_queue_takes_anything() -> None:
    desk = Desk(options=QueueOptions(max_bytes=1, max_tokens=1))
    ticket, refusal = desk.arrive(num_bytes=10**9)
    assert refusal is None
    assert desk.policy.join(ticket, Demand(10**9), desk.now) is None


def test_prompts_that_wait_are_bounded_once_they_are_tokenised() -> None:
    desk = Desk(options=QueueOptions(max_tokens=1000))
    desk.send(num_prompt_tokens=600)
    ticket, _ = desk.arrive()
    refusal = desk.policy.join(ticket, Demand(600), desk.now)
    assert refusal == Refusal(RefusalReason.QUEUE_FULL)
    desk.policy.leave(ticket, desk.now)
    desk.send(num_prompt_tokens=400)


def test_a_tenant_takes_no_more_than_its_share_and_leaves_the_rest_to_others() -> None:
    desk = Desk(options=QueueOptions(max_requests=4), half=Tenant(TenantId("half"), queue_share=0.5))
    assert [desk.arrive("half")[1] for _ in range(3)] == [None, None, Refusal(RefusalReason.TENANT_QUEUE_FULL)]
    assert [desk.arrive("other")[1] for _ in range(3)] == [None, None, Refusal(RefusalReason.QUEUE_FULL)]


def test_what_is_in_the_engine_is_not_in_the_queue() -> None:
    desk = Desk(4, QueueOptions(max_requests=1))
    for _ in range(4):
        desk.send()
        desk.admitted()
    assert len(desk.running) == 4


def test_who_would_wait_for_too_long_is_told_when_to_come_back() -> None:
    desk = Desk()
    desk.send()
    desk.admitted()
    desk.measure()
    waits: list[float] = []
    for _ in range(4):
        ticket, refusal = desk.arrive()
        if refusal is None:
            desk.policy.join(ticket, Demand(100, 50), desk.now)
        else:
            assert refusal.reason is RefusalReason.WAIT_TOO_LONG
            assert refusal.retry_after_seconds is not None
            waits.append(refusal.retry_after_seconds)
    assert len(waits) >= 1
    assert waits == sorted(waits)
    assert desk.arrive(service_class=BATCH)[1] is None


def test_a_deadline_that_cannot_be_met_is_refused_without_a_hint() -> None:
    desk = Desk()
    desk.send()
    desk.admitted()
    desk.measure(step_seconds=0.1)
    desk.send()
    assert desk.arrive(deadline=desk.now + 5)[1] == Refusal(RefusalReason.DEADLINE_UNMEETABLE)
    assert desk.arrive(deadline=desk.now + 500)[1] is None


def answer(desk: Desk, *lengths: int) -> None:
    """Requests that have run, each with an output of so many tokens; a step takes 0.1 s."""
    for num_output_tokens in lengths:
        desk.send()
        (ticket,) = desk.admitted()
        desk.serve(ticket, num_output_tokens=num_output_tokens)
    desk.measure(step_seconds=0.1)


def join(desk: Desk, seconds: float, demand: Demand) -> Refusal | None:
    """What a request hears that wants its answer within so many seconds; it leaves at once."""
    ticket, refusal = desk.arrive(deadline=desk.now + seconds)
    assert refusal is None
    refusal = desk.policy.join(ticket, demand, desk.now)
    desk.policy.leave(ticket, desk.now)
    return refusal


UNMEETABLE = Refusal(RefusalReason.DEADLINE_UNMEETABLE)


def test_a_deadline_that_leaves_too_little_time_for_the_answer_is_refused_though_nobody_waits() -> None:
    desk = Desk()
    answer(desk, *[50] * 10)  # which takes 5 s
    assert join(desk, 4.0, Demand(100, 200)) == UNMEETABLE
    assert join(desk, 6.0, Demand(100, 200)) is None


def test_an_answer_takes_no_longer_than_the_request_allows() -> None:
    desk = Desk()
    answer(desk, *[50] * 10)
    assert join(desk, 4.0, Demand(100, 20)) is None


def test_choices_are_made_side_by_side() -> None:
    desk = Desk(16)
    answer(desk, *[50] * 10)
    assert join(desk, 6.0, Demand(100, 8 * 200, 8)) is None
    assert join(desk, 4.0, Demand(100, 8 * 200, 8)) == UNMEETABLE


@pytest.mark.parametrize("lengths", [[50] * 3, [5, 150, 10, 200, 5, 5, 150, 5, 90, 5]])
def test_where_lengths_vary_or_few_are_known_a_deadline_is_taken_to_be_met(lengths: list[int]) -> None:
    desk = Desk()
    answer(desk, *lengths)
    assert join(desk, 1.0, Demand(100, 200)) is None


def test_a_long_prompt_takes_no_longer_for_those_that_decode_beside_it() -> None:
    desk = Desk(64)
    answer(desk, *[1] * 10)
    stats = desk.stats
    for _ in range(100):  # 0.1 ms for each token of a prompt
        stats = replace(
            stats,
            num_steps_total=stats.num_steps_total + 1,
            step_seconds_total=stats.step_seconds_total + 0.2,
            prefill_tokens_total=stats.prefill_tokens_total + 1000,
            decode_tokens_total=stats.decode_tokens_total + 1,
        )
        desk.policy.observe(stats, desk.now)
    for _ in range(40):
        desk.send(num_prompt_tokens=1)
    assert len(desk.admitted()) > 20
    assert join(desk, 2.0, Demand(4000, 1)) is None


def test_whoever_is_sent_away_for_the_length_of_others_answers_is_let_in_before_long() -> None:
    desk = Desk()
    answer(desk, *[50] * 40)
    refusals = [join(desk, 1.0, Demand(100, 200)) for _ in range(40)]
    assert refusals[0] == UNMEETABLE
    assert refusals[-1] is None


def test_answers_that_were_cut_off_say_nothing_of_the_length_of_others() -> None:
    desk = Desk()
    answer(desk, *[50] * 10)
    for num_output_tokens in (1, 2, 3):
        late = desk.send(deadline=desk.now + 5.1)
        assert desk.admitted() == [late]
        desk.policy.began(late, 100, 0, desk.now)
        desk.policy.generated(late, num_output_tokens, desk.now)
        desk.now += 6
        assert [ticket for ticket, _ in desk.policy.decide(desk.now).refuse] == [late]
    assert join(desk, 4.0, Demand(100, 200)) == UNMEETABLE


def test_nobody_is_refused_for_a_wait_that_is_not_known() -> None:
    desk = Desk()
    for _ in range(200):
        desk.send(deadline=desk.now + 0.001)


# Deadlines.


def test_a_deadline_that_has_passed_is_refused_at_once() -> None:
    desk = Desk()
    assert desk.arrive(deadline=desk.now)[1] == Refusal(RefusalReason.DEADLINE_EXPIRED)
    ticket, _ = desk.arrive(deadline=desk.now + 1)
    desk.now += 1
    assert desk.policy.join(ticket, Demand(1), desk.now) == Refusal(RefusalReason.DEADLINE_EXPIRED)


def test_what_expires_is_ended_before_anything_is_let_in_wherever_it_is() -> None:
    desk = Desk(2)
    running = desk.send(deadline=desk.now + 2)
    other = desk.send()
    assert desk.admitted() == [running, other]
    waiting, patient = desk.send(deadline=desk.now + 1), desk.send()
    assert desk.policy.decide(desk.now).look_again_at == desk.now + 1
    desk.now += 2
    decisions = desk.policy.decide(desk.now)
    assert [ticket for ticket, _ in decisions.refuse] == [waiting, running]
    assert {refusal.reason for _, refusal in decisions.refuse} == {RefusalReason.DEADLINE_EXPIRED}
    assert decisions.admit == (patient,)
    assert decisions.look_again_at is None


# Preemption.


def batch_in_engine(desk: Desk, num_requests: int = 4, *, can_restart: bool = True) -> list[TicketId]:
    tickets = [desk.send("batch", BATCH, can_restart=can_restart) for _ in range(num_requests)]
    assert desk.admitted() == tickets
    return tickets


def test_batch_requests_make_room_newest_first_as_few_as_needed_and_once() -> None:
    desk = Desk(4)
    batch = batch_in_engine(desk)
    desk.send(num_sequences=2)
    assert desk.policy.decide(desk.now).preempt == (batch[3], batch[2])
    assert desk.policy.decide(desk.now).preempt == ()


def test_a_preempted_request_comes_back_first_and_is_not_preempted_for_ever() -> None:
    desk = Desk(1)
    (batch,) = batch_in_engine(desk, 1)
    desk.send("batch", BATCH, can_restart=True)
    for _ in range(3):
        urgent = desk.send()
        assert desk.policy.decide(desk.now).preempt == (batch,)
        desk.policy.requeue(batch, desk.now)
        assert desk.policy.join(batch, Demand(100, 50), desk.now) is None
        assert desk.admitted() == [urgent]
        desk.serve(urgent)
        assert desk.admitted() == [batch]
    desk.send()
    assert desk.policy.decide(desk.now).preempt == ()


def test_nothing_is_thrown_out_in_vain() -> None:
    desk = Desk(4)
    batch_in_engine(desk, 2, can_restart=False)
    batch_in_engine(desk, 2)
    desk.send(num_sequences=4)
    assert desk.policy.decide(desk.now).preempt == ()


def test_batch_work_makes_no_room_for_batch_work() -> None:
    desk = Desk(4)
    batch_in_engine(desk)
    desk.send("other", BATCH)
    assert desk.policy.decide(desk.now).preempt == ()


# When an engine dies.


def test_requests_of_a_dead_engine_join_again_before_others_whatever_waits() -> None:
    desk = Desk(1, QueueOptions(max_requests=2, max_tokens=150))
    first = desk.send()
    desk.admitted()
    desk.send()
    desk.policy.requeue(first, desk.now)
    desk.running.remove(first)
    desk.policy.engine_changed(EngineCapacity(1, 1000, 100_000), desk.now)
    assert desk.policy.join(first, Demand(100, 50), desk.now) is None
    assert desk.admitted() == [first]


# What people are told.


def test_the_view_says_who_stands_where_and_why() -> None:
    desk = Desk(1)
    running, waiting, (at_door, _) = desk.send(), desk.send("other"), desk.arrive()
    desk.admitted()
    view = desk.policy.view(desk.now)
    assert [(seen.ticket, seen.stage, seen.why, seen.position) for seen in view.tickets] == [
        (running, Stage.RUNNING, "", None),
        (waiting, Stage.WAITING, "a slot", 1),
        (at_door, Stage.AT_THE_DOOR, "", None),
    ]
    assert (view.slot_limit, view.num_sequences_running) == (1, 1)
    assert [(seen.tenant, seen.num_waiting, seen.num_running) for seen in view.tenants] == [
        ("t", 0, 1),
        ("other", 1, 0),
    ]


def test_the_outlook_counts_those_before_and_the_time_they_take() -> None:
    desk = Desk(1)
    running = desk.send()
    desk.admitted()
    second, third = desk.send(), desk.send()
    assert desk.policy.outlook(running, desk.now) is None
    assert desk.policy.outlook(second, desk.now) == Outlook(1, None)
    desk.measure()
    outlooks = [desk.policy.outlook(ticket, desk.now) for ticket in (second, third)]
    assert [outlook.position for outlook in outlooks if outlook is not None] == [1, 2]
    waits = [outlook.wait_seconds for outlook in outlooks if outlook is not None]
    assert waits[0] is not None
    assert waits[1] is not None
    assert 0 < waits[0] < waits[1]


def test_an_engine_that_measures_nothing_is_judged_by_what_it_was_seen_to_do() -> None:
    desk = Desk(1)
    tickets = [desk.send() for _ in range(4)]
    for ticket in tickets[:3]:
        assert desk.admitted() == [ticket]
        assert desk.admitted() == []
        desk.now += 1.0
        desk.policy.generated(ticket, 50, desk.now)
        desk.policy.decide(desk.now)
        desk.serve(ticket, num_output_tokens=0)
    view = desk.policy.view(desk.now)
    assert view.tokens_per_second is not None
    assert view.tokens_per_second == pytest.approx(100)
    outlook = desk.policy.outlook(tickets[3], desk.now)
    assert outlook is not None
    assert outlook.wait_seconds == 0.0


def test_tenants_that_have_nothing_here_are_not_shown() -> None:
    desk = Desk(1)
    ticket = desk.send()
    desk.admitted()
    desk.serve(ticket)
    view = desk.policy.view(desk.now)
    assert (view.tickets, view.tenants) == ((), ())


def test_a_short_prompt_of_a_light_tenant_does_not_wait_for_long_ones_to_be_computed() -> None:
    desk = Desk(16)
    long = [desk.send("heavy", num_prompt_tokens=5000) for _ in range(3)]
    assert desk.admitted() == long[:1]
    desk.policy.observe(replace(desk.stats, num_steps_total=1, prefill_tokens_total=1000), desk.now)
    assert desk.admitted() == []
    short = desk.send("light", num_prompt_tokens=50)
    assert desk.admitted() == [short]
    desk.policy.check_integrity()
    desk.policy.began(short, 50, 0, desk.now)
    desk.policy.check_integrity()


def flooded(desk: Desk, *, num_requests: int = 10) -> TicketId:
    """`heavy` is served so many requests while one of `light` runs; that one."""
    light = desk.send("light", num_prompt_tokens=10)
    assert desk.admitted() == [light]
    for _ in range(num_requests):
        desk.send("heavy")
        desk.serve(*desk.admitted())
        desk.now += 0.1
    return light


def test_who_was_served_little_goes_first_in_the_engine_and_no_flood_does() -> None:
    desk = Desk(16)
    flooded(desk)
    heavy, light = desk.send("heavy"), desk.send("light")
    decisions = desk.policy.decide(desk.now)
    assert set(decisions.admit) == {heavy, light}
    assert decisions.favoured == {light}


def test_what_a_tenant_was_served_while_it_was_alone_does_not_count() -> None:
    desk = Desk(16)
    for _ in range(100):
        desk.send("light")
        desk.serve(*desk.admitted())
    desk.leave(flooded(desk))
    heavy, light = desk.send("heavy"), desk.send("light")
    decisions = desk.policy.decide(desk.now)
    assert set(decisions.admit) == {heavy, light}
    assert decisions.favoured == {light}


def test_what_is_computed_when_another_comes_counts() -> None:
    desk = Desk(16)
    desk.send("heavy", num_prompt_tokens=900)
    desk.admitted()
    light, heavy = desk.send("light", num_prompt_tokens=10), desk.send("heavy", num_prompt_tokens=10)
    decisions = desk.policy.decide(desk.now)
    assert set(decisions.admit) == {light, heavy}
    assert decisions.favoured == {light}


def test_nobody_goes_first_of_those_who_are_alone_or_send_batch_work() -> None:
    desk = Desk(16)
    desk.send("alone")
    assert desk.policy.decide(desk.now).favoured == set()
    desk.send("other", BATCH, can_restart=True)
    assert desk.policy.decide(desk.now).favoured == set()


def test_a_tenant_of_which_nothing_has_come_for_long_was_served_little_again() -> None:
    desk = Desk(16)
    desk.leave(flooded(desk))
    assert desk.admitted() == []
    desk.send("third", num_prompt_tokens=10)
    for _ in range(30):
        desk.now += 1.0
        desk.send("steady")
        for ticket in desk.admitted():
            if ticket != desk.running[0]:
                desk.serve(ticket)
    back, steady = desk.send("heavy"), desk.send("steady")
    decisions = desk.policy.decide(desk.now)
    assert set(decisions.admit) == {back, steady}
    assert decisions.favoured == {back}


def test_a_second_long_prompt_has_no_claim_to_the_reserve_and_short_ones_have() -> None:
    desk = Desk(16)
    long = desk.send("heavy", num_prompt_tokens=10_000)
    assert desk.admitted() == [long]
    desk.policy.observe(replace(desk.stats, num_steps_total=1, prefill_tokens_total=500), desk.now)
    second, short = desk.send("light", num_prompt_tokens=5000), desk.send("other", num_prompt_tokens=100)
    assert desk.admitted() == [short]
    assert second not in desk.running


def test_a_prompt_that_is_given_up_half_way_takes_what_was_computed_of_it_along() -> None:
    desk = Desk(16)
    given_up = desk.send("t", num_prompt_tokens=10_000)
    assert desk.admitted() == [given_up]
    desk.policy.observe(replace(desk.stats, num_steps_total=1, prefill_tokens_total=8000), desk.now)
    desk.leave(given_up)
    long, next_one = desk.send("t", num_prompt_tokens=10_000), desk.send("t", num_prompt_tokens=10_000)
    assert desk.admitted() == [long]
    desk.policy.observe(replace(desk.stats, num_steps_total=2, prefill_tokens_total=8500), desk.now)
    assert desk.admitted() == []
    desk.policy.check_integrity()
    assert next_one not in desk.running


def test_who_has_been_idle_for_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_MOST_IDLE_TENANTS", 2)
    desk = Desk()
    for tenant in ("first", "second", "first", "third"):
        desk.send(tenant)
        desk.serve(*desk.admitted())
    for tenant in ("third", "first", "second"):
        desk.send(tenant)
    served = {tenant.tenant: tenant.served_tokens for tenant in desk.policy.view(desk.now).tenants}
    assert served == {"third": 200.0, "first": 400.0, "second": 0.0}


def test_short_prompts_go_past_a_long_one_until_their_tenant_has_had_as_much_as_it_takes() -> None:
    desk = Desk(64)
    computing = desk.send("heavy", num_prompt_tokens=30_000)
    assert desk.admitted() == [computing]
    desk.policy.observe(replace(desk.stats, num_steps_total=1, prefill_tokens_total=1000), desk.now)
    long = desk.send("heavy", num_prompt_tokens=3000)
    num_before = 0
    for _ in range(40):
        short = desk.send("light", num_prompt_tokens=200)
        num_before += short in desk.admitted()
        if short in desk.running:
            desk.serve(short, 200, num_output_tokens=0)
    assert long not in desk.running
    assert 3000 / 200 <= num_before <= 1.2 * 3000 / 200 + 1000 / 200


def test_a_limit_that_falls_under_what_runs_keeps_no_light_tenant_out() -> None:
    desk = Desk(100)
    for _ in range(90):
        desk.send("heavy")
    for ticket in desk.admitted():
        desk.policy.began(ticket, 100, 0, desk.now)
    while desk.admitted():
        for ticket in desk.running:
            desk.policy.began(ticket, 0, 0, desk.now)
    num_running = len(desk.running)
    desk.measure(step_seconds=0.02)
    for num_decoding in range(1, 400):
        desk.stats = replace(
            desk.stats,
            num_steps_total=desk.stats.num_steps_total + 1,
            step_seconds_total=desk.stats.step_seconds_total + 0.02 + 0.01 * (1 + num_decoding % 60),
            decode_tokens_total=desk.stats.decode_tokens_total + 1 + num_decoding % 60,
        )
        desk.policy.observe(desk.stats, desk.now)
    assert (desk.policy.view(desk.now).slot_limit or 0) < num_running
    more, light, second = desk.send("heavy"), desk.send("light"), desk.send("light")
    assert desk.admitted() == [light]
    desk.leave(light)
    assert desk.admitted() == [second]
    desk.policy.check_integrity()
    assert more not in desk.running
