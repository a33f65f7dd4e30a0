"""loadtests.origin.faults and delivery: which request a fault hits, and what becomes of a body."""

import socket
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.origin.delivery import Break, Disturbance, FlipByte, Pause, Send, Step, Wire, deliver, plan_delivery
from loadtests.origin.faults import Change, Fault, FaultPlan, Faults, Flip, Reset, Stall, Status, When
from loadtests.origin.link import Link, OpenLink


def hits(plan: FaultPlan, path: str = "/f", range_header: str = "", method: str = "GET") -> bool:
    return bool(plan.hits(method, path, range_header))


def plan_of(*faults: Fault, seed: int = 0) -> FaultPlan:
    return FaultPlan(Faults(faults, seed))


def test_without_conditions_a_fault_hits_every_request() -> None:
    plan = plan_of(Reset())
    assert [hits(plan) for _ in range(3)] == [True, True, True]


def test_a_fault_begins_with_its_first_request_and_ends_when_it_has_hit_often_enough() -> None:
    plan = plan_of(Reset(when=When(first=3, most=2)))
    assert [hits(plan) for _ in range(6)] == [False, False, True, True, False, False]


def test_only_paths_that_match_are_counted() -> None:
    plan = plan_of(Status(when=When(path="*.safetensors", first=2)))
    assert not hits(plan, "/files/m/config.json")
    assert not hits(plan, "/files/m/model.safetensors")
    assert hits(plan, "/files/m/model.safetensors")
    assert not hits(plan, "/files/m/config.json")


def test_faults_of_bodies_leave_head_alone_and_others_do_not() -> None:
    plan = plan_of(Flip(when=When(most=1)))
    assert not hits(plan, method="HEAD")
    assert hits(plan, method="GET")
    assert hits(plan_of(Status()), method="HEAD")


def test_a_range_may_be_hit_once_only() -> None:
    plan = plan_of(Reset(when=When(once_each=True)))
    asked = [("/a", "bytes=0-1"), ("/a", "bytes=0-1"), ("/a", "bytes=2-3"), ("/b", "bytes=0-1"), ("/a", "bytes=2-3")]
    assert [hits(plan, path, range_header) for path, range_header in asked] == [True, False, True, True, False]


@given(
    order=st.permutations([(path, f"bytes={at}-") for path in ("/a", "/b") for at in range(8)]), seed=st.integers(0, 99)
)
def test_a_probability_hits_the_same_requests_in_whatever_order_they_come(
    order: list[tuple[str, str]], seed: int
) -> None:
    def hit(requests: list[tuple[str, str]]) -> set[tuple[str, str]]:
        plan = plan_of(Reset(when=When(probability=0.5)), seed=seed)
        return {request for request in requests if hits(plan, *request)}

    assert hit(order) == hit(sorted(order))


def test_a_probability_hits_about_that_share_and_others_with_another_seed() -> None:
    plans = [plan_of(Reset(when=When(probability=0.3)), seed=seed) for seed in (1, 2)]
    one, other = ([hits(plan, "/f", f"bytes={at}-") for at in range(1000)] for plan in plans)
    assert 250 < sum(one) < 350
    assert one != other


def test_asking_again_is_another_throw_of_the_dice() -> None:
    plan = plan_of(Reset(when=When(probability=0.5)))
    assert len({hits(plan, "/f", "bytes=0-1") for _ in range(50)}) == 2


def test_all_faults_that_match_hit_in_their_order() -> None:
    stall, reset = Stall(seconds=1), Reset()
    assert plan_of(stall, reset).hits("GET", "/f", "") == (stall, reset)


def test_a_flip_is_in_the_middle_and_happens_once_to_each_byte() -> None:
    flip = Flip()
    plan = plan_of(flip)
    assert plan.flips(flip, "/f", 100, 200) == (150,)
    assert plan.flips(flip, "/f", 100, 200) == ()
    assert plan.flips(flip, "/g", 100, 200) == (150,)
    assert plan.flips(flip, "/f", 100, 100) == ()


def test_a_flip_may_happen_always() -> None:
    flip = Flip(always=True)
    plan = plan_of(flip)
    assert plan.flips(flip, "/f", 0, 10) == plan.flips(flip, "/f", 0, 10) == (5,)


@given(begin=st.integers(0, 5000), length=st.integers(0, 5000), every=st.integers(1, 1000))
def test_flips_at_intervals_hit_every_stretch_of_the_file_at_one_place(begin: int, length: int, every: int) -> None:
    flip = Flip(every_bytes=every)
    found = plan_of(flip).flips(flip, "/f", begin, begin + length)
    assert found == tuple(at for at in range(begin, begin + length) if at % every == every // 2)


def sent(steps: list[Step]) -> list[tuple[int, int, bool]]:
    return [(step.begin, step.end, step.flipped) for step in steps if isinstance(step, Send)]


@given(
    begin=st.integers(0, 50),
    length=st.integers(0, 50),
    places=st.lists(st.tuples(st.integers(0, 120), st.booleans()), max_size=6, unique_by=lambda place: place[0]),
)
def test_flips_and_stalls_leave_out_no_byte_and_send_none_twice(
    begin: int, length: int, places: list[tuple[int, bool]]
) -> None:
    end = begin + length
    disturbances = [Disturbance(at, FlipByte() if flip else Pause(1)) for at, flip in places]
    steps = plan_delivery(begin, end, disturbances)
    assert [at for first, last, _ in sent(steps) for at in range(first, last)] == list(range(begin, end))
    flipped = {first for first, _, wrong in sent(steps) if wrong}
    assert flipped == {at for at, flip in places if flip and begin <= at < end}
    assert steps.count(Pause(1)) == sum(not flip and begin <= at < end for at, flip in places)


def test_nothing_is_sent_after_a_break() -> None:
    steps = plan_delivery(0, 100, [Disturbance(40, Break(reset=True)), Disturbance(60, FlipByte())])
    assert steps == [Send(0, 40), Break(reset=True)]


def test_an_undisturbed_body_is_one_piece_and_an_empty_one_none() -> None:
    assert plan_delivery(5, 9, []) == [Send(5, 9)]
    assert plan_delivery(5, 5, []) == []


class LeavingClient:
    """Takes ten bytes, then is gone."""

    def __init__(self) -> None:
        self._answers = iter([10])

    def send(self, data: memoryview) -> int:
        for num_bytes in self._answers:
            return num_bytes
        raise BrokenPipeError


def test_what_a_client_that_left_did_not_take_is_not_counted() -> None:
    counted: list[int] = []

    def pause(seconds: float) -> None:
        raise AssertionError("there is nothing to wait for")

    wire = Wire(cast(socket.socket, LeavingClient()), OpenLink(Link(), pause=pause), None, counted.append, pause)
    with pytest.raises(BrokenPipeError):
        deliver(b"x" * 100, [Send(0, 100)], wire)
    assert sum(counted) == 10


@pytest.mark.parametrize("fault", [Stall(seconds=2), Change(model="m", directory=Path("d"))])
def test_every_fault_has_a_kind_of_its_own(fault: Fault) -> None:
    assert fault.kind == type(fault).__name__.lower()
