"""The placement policy, case by case: a budget of 10 bytes, turns of 30 seconds, and it is second 100."""

from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.domain import ModelId
from headrace_server.residency import NoRoom, Phase, Placement, Resident, Wanted
from headrace_server.scheduling.placement import LeastRecentlyUsed
from tests.unit.headrace_server.scheduling_support import check_victims, is_at_rest

BUDGET, TURN, NOW = 10, 30.0, 100.0


def idle(model: str, size: int, *, since: float = 50.0, keep_alive: float | None = None, pin: bool = False) -> Resident:
    """Serves, and nobody has used it for a while."""
    return Resident(
        ModelId(model),
        size,
        Phase.SERVING,
        idle_since=since,
        keep_alive_seconds=keep_alive,
        is_pinned=pin,
    )


def in_use(model: str, size: int, *, since: float, pin: bool = False, keep_alive: float | None = None) -> Resident:
    """Has served since then, and somebody uses it."""
    return Resident(
        ModelId(model),
        size,
        Phase.SERVING,
        num_leases=1,
        serving_since=since,
        is_pinned=pin,
        keep_alive_seconds=keep_alive,
    )


def starting(model: str, size: int, *, pin: bool = False) -> Resident:
    """Not ready yet."""
    return Resident(ModelId(model), size, Phase.STARTING, is_pinned=pin)


def leaving(model: str, size: int, *, pin: bool = False) -> Resident:
    """Will be gone soon."""
    return Resident(ModelId(model), size, Phase.LEAVING, num_leases=1, is_pinned=pin)


def wants(model: str, size: int, *, since: float = 90.0) -> Wanted:
    """Requests wait for it."""
    return Wanted(ModelId(model), size, since)


def in_advance(model: str, size: int, *, since: float = 90.0) -> Wanted:
    """Nobody waits for it yet."""
    return Wanted(ModelId(model), size, since, may_evict=False)


def models(names: str) -> tuple[ModelId, ...]:
    return tuple(ModelId(name) for name in names.split())


def does(
    start: str = "", *, evict: str = "", drain: str = "", no_room: tuple[NoRoom, ...] = (), again: float | None = None
) -> Placement:
    """A plan; models are named in one text."""
    return Placement(models(start), models(evict), models(drain), no_room, again)


def refuses(model: str, size: int, available: int, blocked_by: str = "") -> NoRoom:
    return NoRoom(ModelId(model), size, available, models(blocked_by))


@dataclass(frozen=True)
class Case:
    rule: str
    residents: tuple[Resident, ...]
    wanted: tuple[Wanted, ...]
    plan: Placement


CASES = (
    Case("nobody wants anything, so nothing happens", (idle("a", 9),), (), does()),
    Case("a model that fits starts", (idle("a", 4),), (wants("b", 6),), does("b")),
    Case("who wanted first starts first", (), (wants("a", 4, since=92), wants("b", 4, since=91)), does("b")),
    Case("of two that came together the name decides", (), (wants("b", 4), wants("a", 4)), does("a")),
    Case("one starts at a time", (starting("a", 2),), (wants("b", 2),), does()),
    Case("a model without memory starts beside another start", (starting("a", 9),), (wants("b", 0),), does("b")),
    Case(
        "a model without memory starts in any trouble", (in_use("a", 12, since=99),), (in_advance("b", 0),), does("b")
    ),
    Case("a start that takes no memory keeps nobody waiting", (starting("a", 0),), (wants("b", 2),), does("b")),
    Case(
        "several start at once if only one of them takes memory",
        (),
        (wants("a", 0), wants("b", 10), wants("c", 0), wants("d", 0)),
        does("a b c d"),
    ),
    # Who makes room.
    Case(
        "the one that was unused longest makes room",
        (idle("a", 5, since=60), idle("b", 5, since=40)),
        (wants("c", 5),),
        does(evict="b"),
    ),
    Case(
        "of those that were unused equally long the name decides",
        (idle("b", 5), idle("a", 5)),
        (wants("c", 5),),
        does(evict="a"),
    ),
    Case(
        "of those that serve equally long the name decides",
        (in_use("b", 5, since=40), in_use("a", 5, since=40)),
        (wants("c", 5),),
        does(drain="a"),
    ),
    Case(
        "no more go than are needed",
        (idle("a", 3, since=40), idle("b", 3, since=41), idle("c", 3, since=42)),
        (wants("d", 6),),
        does(evict="a b"),
    ),
    Case(
        "who is not needed because a larger one has to go anyway stays",
        (idle("a", 2, since=40), idle("b", 8, since=41)),
        (wants("c", 8),),
        does(evict="b"),
    ),
    Case(
        "of those that might stay, the last used one does",
        (idle("a", 2, since=40), idle("b", 2, since=41), idle("c", 6, since=42)),
        (wants("d", 8),),
        does(evict="a c"),
    ),
    Case("nobody goes for what is free", (idle("a", 5), leaving("b", 0)), (wants("c", 5),), does("c")),
    Case(
        "what is coming free is not asked for again",
        (leaving("a", 5), idle("b", 5)),
        (wants("c", 5),),
        does(),
    ),
    Case(
        "beside what is coming free, only the rest is asked for",
        (leaving("a", 4), idle("b", 3, since=40), idle("c", 3, since=41)),
        (wants("d", 7),),
        does(evict="b"),
    ),
    Case(
        "a model loaded in advance that nobody has used is a fair victim",
        (Resident(ModelId("a"), 10, Phase.SERVING, serving_since=99.0, idle_since=99.0),),
        (wants("b", 5),),
        does(evict="a"),
    ),
    Case(
        "models without memory never have to go",
        (idle("a", 0, since=1), idle("b", 10)),
        (wants("c", 5),),
        does(evict="b"),
    ),
    Case("nobody goes while another engine starts", (starting("a", 5), idle("b", 5)), (wants("c", 5),), does()),
    # Turns.
    Case("a turn that is not over is waited for", (in_use("a", 10, since=80),), (wants("b", 5),), does(again=110)),
    Case("a turn ends on time", (in_use("a", 10, since=70),), (wants("b", 5),), does(drain="a")),
    Case(
        "who serves longest is drained first",
        (in_use("a", 5, since=50), in_use("b", 5, since=40)),
        (wants("c", 5),),
        does(drain="b"),
    ),
    Case(
        "idle ones go before anybody is drained",
        (in_use("a", 5, since=10), idle("b", 5, since=99)),
        (wants("c", 5),),
        does(evict="b"),
    ),
    Case(
        "idle ones go together with those that are drained",
        (in_use("a", 5, since=10), idle("b", 5)),
        (wants("c", 8),),
        does(evict="b", drain="a"),
    ),
    Case(
        "an idle one stays if the one that is drained is enough",
        (in_use("a", 8, since=10), idle("b", 2)),
        (wants("c", 8),),
        does(drain="a"),
    ),
    Case(
        "nobody goes before it is enough",
        (in_use("a", 5, since=10), idle("b", 1), in_use("c", 4, since=90)),
        (wants("d", 8),),
        does(again=120),
    ),
    Case(
        "the earliest turn that helps is looked at again",
        (in_use("a", 5, since=90), in_use("b", 5, since=80)),
        (wants("c", 5),),
        does(again=110),
    ),
    Case(
        "a turn that does not help is not looked at",
        (in_use("a", 2, since=80), in_use("b", 8, since=90)),
        (wants("c", 8),),
        does(again=120),
    ),
    Case(
        "while another one starts, its readiness is waited for and no turn",
        (starting("a", 8),),
        (wants("b", 5),),
        does(),
    ),
    # Who was there first.
    Case(
        "memory that an earlier one waits for is not given to a later one",
        (in_use("a", 6, since=80),),
        (wants("b", 8, since=91), wants("c", 4, since=92)),
        does(again=110),
    ),
    Case(
        "a later one starts beside what the earlier one will need",
        (in_use("a", 6, since=80),),
        (wants("b", 8, since=91), wants("c", 2, since=92)),
        does("c", again=110),
    ),
    Case(
        "a later one starts while victims of the earlier one leave",
        (leaving("a", 6),),
        (wants("b", 8, since=91), wants("c", 2, since=92)),
        does("c"),
    ),
    Case(
        "memory that comes free for an earlier one is not given to a later one",
        (leaving("a", 6),),
        (wants("b", 8, since=91), wants("c", 4, since=92), wants("d", 1, since=93)),
        does(),
    ),
    Case(
        "a later one may ask an idle one to go that the earlier one does not need",
        (in_use("a", 8, since=80), idle("b", 2)),
        (wants("c", 8, since=91), wants("d", 2, since=92)),
        does(evict="b", again=110),
    ),
    Case(
        "a later one may not ask those to go whom the earlier one needs",
        (in_use("a", 6, since=80), idle("b", 4)),
        (wants("c", 10, since=91), wants("d", 4, since=92)),
        does(again=110),
    ),
    Case(
        "room is made for two at once",
        (idle("a", 5, since=40), idle("b", 5, since=41)),
        (wants("c", 5, since=91), wants("d", 5, since=92)),
        does(evict="a b"),
    ),
    Case(
        "the second one waits for the first one's turn",
        (idle("a", 10),),
        (wants("b", 10, since=91), wants("c", 10, since=92)),
        does(evict="a"),
    ),
    Case(
        "those who overtake leave the earlier one enough together",
        (in_use("a", 6, since=80), leaving("b", 3)),
        (wants("c", 8, since=91), wants("d", 2, since=92), wants("e", 1, since=93)),
        does(again=110),
    ),
    Case(
        "nobody overtakes at the cost of any of those before",
        (in_use("a", 6, since=80), in_use("b", 3, since=90)),
        (wants("c", 7, since=91), wants("d", 2, since=92), wants("e", 1, since=93)),
        does(again=110),
    ),
    # In advance.
    Case("a model is loaded in advance into what is free", (idle("a", 5),), (in_advance("b", 5),), does("b")),
    Case(
        "a model in advance makes no room",
        (idle("a", 5),),
        (in_advance("b", 6),),
        does(no_room=(refuses("b", 6, 5),)),
    ),
    Case("a model in advance waits for another start", (starting("a", 5),), (in_advance("b", 5),), does()),
    Case("a model in advance waits for memory that is coming free", (leaving("a", 5),), (in_advance("b", 10),), does()),
    Case(
        "a model in advance does not wait for a start to end that takes its memory",
        (starting("a", 5),),
        (in_advance("b", 6),),
        does(no_room=(refuses("b", 6, 5),)),
    ),
    Case(
        "models in advance come last, however long ago they were wished for",
        (),
        (in_advance("a", 5, since=1), wants("b", 6, since=99)),
        does("b", no_room=(refuses("a", 5, 4),)),
    ),
    Case(
        "models in advance get nothing that is promised to another one",
        (in_use("a", 6, since=80),),
        (wants("b", 8), in_advance("c", 2)),
        does(again=110, no_room=(refuses("c", 2, 0),)),
    ),
    Case(
        "models in advance get what others leave of their victims",
        (idle("a", 10),),
        (wants("b", 6), in_advance("c", 4), in_advance("d", 1)),
        does(evict="a", no_room=(refuses("d", 1, 0),)),
    ),
    Case(
        "of models in advance only as many wait as fit together",
        (),
        (in_advance("a", 4), in_advance("b", 4), in_advance("c", 4), in_advance("d", 2)),
        does("a", no_room=(refuses("c", 4, 2),)),
    ),
    # What will never fit.
    Case(
        "what exceeds the budget never fits",
        (idle("a", 2, pin=True),),
        (wants("b", 11),),
        does(no_room=(refuses("b", 11, 10),)),
    ),
    Case(
        "what does not fit beside pinned models is told which",
        (idle("a", 3, pin=True), in_use("b", 2, since=1, pin=True), starting("c", 4, pin=True)),
        (wants("d", 5),),
        does(no_room=(refuses("d", 5, 1, "c"),)),
    ),
    Case(
        "as many pinned models are named as would have to go",
        (idle("a", 3, pin=True), in_use("b", 2, since=1, pin=True), starting("c", 4, pin=True)),
        (wants("d", 8),),
        does(no_room=(refuses("d", 8, 1, "c a"),)),
    ),
    Case("a pinned model that leaves is in nobody's way", (leaving("a", 8, pin=True),), (wants("b", 10),), does()),
    Case(
        "what will never fit keeps nobody from starting",
        (idle("a", 5, pin=True),),
        (wants("b", 6, since=1), wants("c", 5, since=2)),
        does("c", no_room=(refuses("b", 6, 5, "a"),)),
    ),
    Case(
        "of several each is judged alone",
        (idle("a", 5, pin=True),),
        (wants("b", 6, since=1), wants("c", 11, since=2)),
        does(no_room=(refuses("b", 6, 5, "a"), refuses("c", 11, 10))),
    ),
    Case(
        "pinned models never make room",
        (idle("a", 5, pin=True, since=1), idle("b", 5)),
        (wants("c", 5),),
        does(evict="b"),
    ),
    # Keep-alive.
    Case("who has been idle for long enough goes", (idle("a", 5, since=60, keep_alive=40),), (), does(evict="a")),
    Case("who has not is looked at again", (idle("a", 5, since=61, keep_alive=40),), (), does(again=101)),
    Case(
        "the earliest of all times counts",
        (idle("a", 1, since=61, keep_alive=60), in_use("b", 9, since=90), idle("c", 0, since=61, keep_alive=50)),
        (wants("d", 8),),
        does(again=111),
    ),
    Case("pinned models are kept alive", (idle("a", 5, since=1, keep_alive=2, pin=True),), (), does()),
    Case("models in use are kept alive", (in_use("a", 5, since=1, keep_alive=2),), (), does()),
    Case(
        "who goes anyway goes first, and for whoever wants the memory",
        (idle("a", 5, since=1), idle("b", 5, since=90, keep_alive=5)),
        (wants("c", 5),),
        does(evict="b"),
    ),
    Case(
        "who goes anyway is counted with for models in advance",
        (idle("a", 6, since=1, keep_alive=5),),
        (in_advance("b", 10),),
        does(evict="a"),
    ),
    # More measured than estimated.
    Case("nobody goes because memory was underestimated", (idle("a", 8), idle("b", 5)), (), does()),
    Case(
        "over the budget, as many go as the new one needs",
        (idle("a", 8, since=40), idle("b", 5, since=41)),
        (wants("c", 4),),
        does(evict="a"),
    ),
    Case(
        "over the budget, nothing is loaded in advance",
        (idle("a", 8), idle("b", 5)),
        (in_advance("c", 1),),
        does(no_room=(refuses("c", 1, 0),)),
    ),
    Case(
        "pinned models over the budget leave nothing",
        (idle("a", 12, pin=True),),
        (wants("b", 1),),
        does(no_room=(refuses("b", 1, 0, "a"),)),
    ),
)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.rule) for case in CASES])
def test_the_policy_does_what_the_rule_says(case: Case) -> None:
    assert LeastRecentlyUsed(BUDGET, turn_seconds=TURN).plan(case.residents, case.wanted, NOW) == case.plan


NAMES = [ModelId(name) for name in "abcdefgh"]
sizes = st.integers(0, 12)
times = st.integers(0, 100).map(float)


@st.composite
def standings(draw: st.DrawFn) -> tuple[list[Resident], list[Wanted]]:
    """Any residents and wishes, likely or not."""
    names = draw(st.permutations(NAMES))
    num_residents = draw(st.integers(0, len(names)))
    residents = [
        Resident(
            name,
            draw(st.integers(0, 6)),
            draw(st.sampled_from(Phase)),
            num_leases=draw(st.integers(0, 2)),
            is_pinned=draw(st.booleans()),
            serving_since=draw(times),
            idle_since=draw(times),
            keep_alive_seconds=draw(st.none() | st.integers(1, 100).map(float)),
        )
        for name in names[:num_residents]
    ]
    wanted = [
        Wanted(name, draw(sizes), draw(times), may_evict=draw(st.booleans()))
        for name in names[num_residents : draw(st.integers(num_residents, len(names)))]
    ]
    return residents, wanted


def plan_of(residents: list[Resident], wanted: list[Wanted]) -> Placement:
    return LeastRecentlyUsed(BUDGET, turn_seconds=TURN).plan(residents, wanted, NOW)


def total(residents: list[Resident]) -> int:
    return sum(resident.memory_bytes for resident in residents)


def carried_out(
    plan: Placement, residents: list[Resident], wanted: list[Wanted]
) -> tuple[list[Resident], list[Wanted]]:
    """How things stand after the plan."""
    gone = {*plan.evict, *plan.drain}
    refused = {no_room.model for no_room in plan.no_room}
    after = [
        Resident(r.model, r.memory_bytes, Phase.LEAVING, r.num_leases, r.is_pinned) if r.model in gone else r
        for r in residents
    ]
    started = [Resident(w.model, w.memory_bytes, Phase.STARTING) for w in wanted if w.model in plan.start]
    return after + started, [w for w in wanted if w.model not in {*plan.start, *refused}]


@given(standings())
def test_whoever_goes_may_go(standing: tuple[list[Resident], list[Wanted]]) -> None:
    residents, wanted = standing
    plan = plan_of(residents, wanted)
    check_victims(plan, residents)
    by_model = {resident.model: resident for resident in residents}
    assert all(by_model[model].serving_since + TURN <= NOW for model in plan.drain)


@given(standings())
def test_whatever_starts_fits_and_starts_alone(standing: tuple[list[Resident], list[Wanted]]) -> None:
    residents, wanted = standing
    plan = plan_of(residents, wanted)
    needed = [wish.memory_bytes for wish in wanted if wish.model in plan.start and wish.memory_bytes]
    assert len(needed) <= 1
    assert not needed or total(residents) + sum(needed) <= BUDGET
    assert not needed or not any(r.phase is Phase.STARTING and r.memory_bytes for r in residents)


@given(standings())
def test_a_plan_that_was_carried_out_is_followed_by_none(standing: tuple[list[Resident], list[Wanted]]) -> None:
    again = plan_of(*carried_out(plan_of(*standing), *standing))
    assert is_at_rest(again)
    assert again.look_again_at is None or again.look_again_at > NOW


@given(standings(), st.randoms(use_true_random=False))
def test_the_order_in_which_things_are_told_does_not_matter(
    standing: tuple[list[Resident], list[Wanted]], random: Random
) -> None:
    residents, wanted = list(standing[0]), list(standing[1])
    plan = plan_of(residents, wanted)
    random.shuffle(residents)
    random.shuffle(wanted)
    assert plan_of(residents, wanted) == plan


@given(standings())
def test_no_victim_could_have_stayed(standing: tuple[list[Resident], list[Wanted]]) -> None:
    """With one wish: without any one of those that go for it, there would be too little."""
    residents, wanted = [r for r in standing[0] if r.keep_alive_seconds is None], standing[1][:1]
    plan = plan_of(residents, wanted)
    victims = [r for r in residents if r.model in {*plan.evict, *plan.drain}]
    coming = BUDGET - total([r for r in residents if r.phase is not Phase.LEAVING]) + total(victims)
    for victim in victims:
        assert wanted[0].may_evict
        assert coming >= wanted[0].memory_bytes > coming - victim.memory_bytes


@given(standings())
def test_a_wish_that_can_come_true_is_always_on_its_way(standing: tuple[list[Resident], list[Wanted]]) -> None:
    """The first one starts, somebody goes for it, or it is known what it waits for."""
    residents, wanted = standing
    plan = plan_of(residents, wanted)
    refused = {no_room.model for no_room in plan.no_room}
    waiting = [wish for wish in wanted if wish.model not in refused and wish.may_evict]
    if not waiting:
        return
    is_changing = any(r.phase is not Phase.SERVING for r in residents if r.memory_bytes)
    assert plan.start or plan.evict or plan.drain or plan.look_again_at is not None or is_changing


@given(standings())
def test_refused_is_who_would_not_fit_beside_pinned_models_alone(
    standing: tuple[list[Resident], list[Wanted]],
) -> None:
    residents, wanted = standing
    pinned = {r.model: r for r in residents if r.is_pinned and r.phase is not Phase.LEAVING}
    refusals = {no_room.model: no_room for no_room in plan_of(residents, wanted).no_room}
    for wish in wanted:
        if wish.may_evict and wish.memory_bytes:
            assert (wish.model in refusals) is (wish.memory_bytes > BUDGET - total(list(pinned.values())))
        if wish.model in refusals and refusals[wish.model].blocked_by:
            freed = total([pinned[model] for model in refusals[wish.model].blocked_by])
            assert wish.memory_bytes <= BUDGET - total(list(pinned.values())) + freed


def test_an_engine_that_waits_for_its_weights_keeps_no_other_one_from_starting() -> None:
    starting = Resident(ModelId("a"), 1, Phase.STARTING)
    wish = Wanted(ModelId("b"), 1, 0.0)
    policy = LeastRecentlyUsed(2, turn_seconds=10)
    assert policy.plan([starting], [wish], 0.0).start == ()
    assert policy.plan([replace(starting, is_waiting=True)], [wish], 0.0).start == (ModelId("b"),)
