"""The placement policy over time: a pool on a virtual clock obeys it, through whatever happens.

`VirtualPool` holds every plan against what no plan may do; here is what must come of them together: nobody starves, and
a crowd on three models in the memory of two causes at most twice the loads of somebody who knows the future.
"""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace_server.domain import ModelId
from headrace_server.scheduling.placement import LeastRecentlyUsed
from tests.unit.headrace_server.scheduling_support import LOAD_SECONDS, STOP_SECONDS, Model, VirtualPool

BUDGET = 10
TURN_SECONDS = 30.0
LONGEST_SECONDS = 60.0  # that a request takes

MODELS = {
    "free": Model(0),
    "tiny": Model(1, keep_alive_seconds=5.0),
    "small": Model(2),
    "grown": Model(3, measured_bytes=5),
    "medium": Model(4, measured_bytes=3, keep_alive_seconds=45.0),
    "large": Model(7),
    "whole": Model(10),
    "never": Model(11),
}
# Everybody else may be first in line, and needs others to have their turn, to finish, to stop and to load.
LONGEST_WAIT = 2 * len(MODELS) * (TURN_SECONDS + LONGEST_SECONDS + STOP_SECONDS + LOAD_SECONDS)

any_model = st.sampled_from([ModelId(name) for name in MODELS])


class PoolUnderThePolicy(RuleBasedStateMachine):
    """Requests, wishes, pins and deaths in any order."""

    def __init__(self) -> None:
        super().__init__()
        policy = LeastRecentlyUsed(BUDGET, turn_seconds=TURN_SECONDS)
        self.pool = VirtualPool(policy, MODELS, budget_bytes=BUDGET)
        self.num_requests = 0

    @rule(model=any_model, seconds=st.floats(0.1, LONGEST_SECONDS))
    def request(self, model: ModelId, seconds: float) -> None:
        self.num_requests += 1
        self.pool.request(model, seconds)

    @rule(model=any_model, seconds=st.floats(0.1, LONGEST_SECONDS), gap=st.floats(0.1, 20.0), times=st.integers(2, 20))
    def keep_in_use(self, model: ModelId, seconds: float, gap: float, times: int) -> None:
        for _ in range(times):
            self.request(model, seconds)
            self.pool.advance(gap)

    @rule(model=any_model)
    def wish(self, model: ModelId) -> None:
        self.pool.wish(model)

    @rule(model=any_model)
    def die(self, model: ModelId) -> None:
        self.pool.die(model)

    @rule(model=st.sampled_from([ModelId("tiny"), ModelId("grown")]), pinned=st.booleans())
    def pin(self, model: ModelId, pinned: bool) -> None:
        self.pool.pin(model, pinned=pinned)

    @rule(seconds=st.floats(0.1, 100.0))
    def advance(self, seconds: float) -> None:
        self.pool.advance(seconds)

    @invariant()
    def nobody_starves(self) -> None:
        assert max(self.pool.longest_wait, self.pool.oldest_wait) <= LONGEST_WAIT

    @precondition(lambda self: self.num_requests > 0)
    @rule()
    def come_to_rest(self) -> None:
        self.pool.finish()
        assert self.pool.oldest_wait == 0.0, "nothing happens any more, and somebody still waits"

    def teardown(self) -> None:
        self.pool.finish()
        assert self.pool.oldest_wait == 0.0
        assert self.num_requests == self.pool.num_served + self.pool.num_refused


TestPoolUnderThePolicy = PoolUnderThePolicy.TestCase
TestPoolUnderThePolicy.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def optimum(order: Sequence[ModelId], num_places: int) -> int:
    """Loads of who knows the future: the model that is needed again last makes room (Belady, "A study of replacement
    algorithms for a virtual-storage computer", 1966)."""
    present: set[ModelId] = set()
    num_loads = 0
    for index, model in enumerate(order):
        if model in present:
            continue
        rest = [*order[index + 1 :], *sorted(present)]  # who is not needed again is needed last
        num_loads += 1
        if len(present) == num_places:
            present.remove(max(present, key=rest.index))
        present.add(model)
    return num_loads


def served(
    order: Sequence[ModelId], seconds: Sequence[float], gaps: Sequence[float], *, turn_seconds: float
) -> VirtualPool:
    """Three equal models in the memory of two, after all requests."""
    models = {name: Model(5) for name in "abc"}
    pool = VirtualPool(LeastRecentlyUsed(10, turn_seconds=turn_seconds), models, budget_bytes=10)
    for model, service_seconds, gap in zip(order, seconds, gaps, strict=True):
        pool.request(model, service_seconds)
        pool.advance(gap)
    pool.finish()
    return pool


def a(names: str) -> list[ModelId]:
    return [ModelId(name) for name in names]


def test_the_optimum_is_beladys() -> None:
    assert optimum(a("abab"), 2) == 2
    assert optimum(a("abcabc"), 2) == 4  # c takes b's place, b takes a's or c's
    assert optimum(a("abcabdabe"), 3) == 5
    assert optimum(a("abc"), 1) == 3


@pytest.mark.parametrize("turn_seconds", [1.0, 30.0])
@pytest.mark.parametrize("mean_seconds", [1.0, 30.0])
@pytest.mark.parametrize("mean_gap", [0.1, 5.0, 60.0])
@pytest.mark.parametrize("seed", range(8))
def test_a_crowd_causes_at_most_twice_the_loads_that_are_needed(
    seed: int, mean_gap: float, mean_seconds: float, turn_seconds: float
) -> None:
    chance = random.Random(seed)
    order = a("".join(chance.choice("abc") for _ in range(64)))
    seconds = [chance.expovariate(1 / mean_seconds) for _ in order]
    gaps = [chance.expovariate(1 / mean_gap) for _ in order]
    pool = served(order, seconds, gaps, turn_seconds=turn_seconds)
    assert pool.num_served == 64
    assert len(pool.loads) <= 2 * optimum(order, 2)


@pytest.mark.parametrize("order", ["abc" * 21 + "a", "a" + "bc" * 31 + "b", "aab" * 10 + "c" + "cb" * 16 + "a"])
def test_orders_that_other_policies_do_badly_on_cause_no_more_either(order: str) -> None:
    pool = served(a(order), [1.0] * 64, [60.0] * 64, turn_seconds=TURN_SECONDS)
    assert pool.num_served == 64
    assert len(pool.loads) <= 2 * optimum(a(order), 2)


@given(st.lists(st.sampled_from(a("abc")), min_size=64, max_size=64))
def test_one_after_the_other_they_cause_at_most_twice_the_loads_that_are_needed(order: list[ModelId]) -> None:
    """As is proven for any cache of two places (Sleator and Tarjan, "Amortized efficiency of list update and paging
    rules", 1985)."""
    pool = served(order, [1.0] * 64, [60.0] * 64, turn_seconds=TURN_SECONDS)
    assert pool.num_served == 64
    assert len(pool.loads) <= 2 * optimum(order, 2)


def test_two_that_are_always_in_use_take_turns_in_the_memory_of_one() -> None:
    pool = VirtualPool(
        LeastRecentlyUsed(10, turn_seconds=TURN_SECONDS), {"a": Model(10), "b": Model(10)}, budget_bytes=10
    )
    for _ in range(1000):
        pool.request(ModelId("a"), 2.0)
        pool.request(ModelId("b"), 2.0)
        pool.advance(1.0)
    pool.finish()
    assert pool.num_served == 2000
    assert set(zip(pool.loads, pool.loads[1:], strict=False)) == {
        (ModelId("a"), ModelId("b")),
        (ModelId("b"), ModelId("a")),
    }
    # In each period one has its turn, finishes and stops, and the other one loads.
    assert len(pool.loads) == pytest.approx(1000 / (TURN_SECONDS + 2 + STOP_SECONDS + LOAD_SECONDS), abs=2)
    assert pool.longest_wait <= 2 * LOAD_SECONDS + TURN_SECONDS + 2 * (2 + STOP_SECONDS)


def test_a_large_model_is_not_starved_by_small_ones_that_would_fit_sooner() -> None:
    small = [ModelId(f"small-{n}") for n in range(7)]
    models = {str(model): Model(2) for model in small} | {"large": Model(10)}
    pool = VirtualPool(LeastRecentlyUsed(10, turn_seconds=TURN_SECONDS), models, budget_bytes=10)
    for second in range(600):
        for model in small:
            pool.request(model, 2.0)
        if second == 200:
            pool.request(ModelId("large"), 2.0)
        pool.advance(1.0)
    # Two of the seven wait already; they are loaded, and have their turn with the others, before all make room.
    longest_wait = 3 * (TURN_SECONDS + 2 + STOP_SECONDS + LOAD_SECONDS)
    assert 200.0 < pool.load_times.get(ModelId("large"), 0.0) <= 200.0 + longest_wait
    pool.finish()
    assert pool.num_served == 600 * 7 + 1
