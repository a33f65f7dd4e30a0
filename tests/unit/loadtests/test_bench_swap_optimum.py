"""loadtests.swap.optimum and footprints: what is needed, held against trying everything out."""

from collections import Counter
from collections.abc import Iterator
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.cache_served import WrongResult
from loadtests.swap.footprints import MIB, Footprint, budget_for
from loadtests.swap.optimum import fewest_loads, random_order

ORDERS = st.lists(st.sampled_from("abcd"), max_size=9)


def tried_out(order: list[str], num_places: int) -> int:
    """The fewest loads of all ways to choose who goes, by following each of them."""
    costs = {frozenset[str](): 0}
    for model in order:
        after: dict[frozenset[str], int] = {}
        for resident, cost in costs.items():
            for held in _held_then(resident, model, num_places):
                after[held] = min(after.get(held, 99), cost + (model not in resident))
        costs = after
    return min(costs.values())


def _held_then(resident: frozenset[str], model: str, num_places: int) -> Iterator[frozenset[str]]:
    if model in resident or len(resident) < num_places:
        yield resident | {model}
        return
    for victim in resident:
        yield resident - {victim} | {model}


@given(ORDERS, st.integers(1, 4))
def test_no_choice_of_who_has_to_go_needs_fewer_loads(order: list[str], num_places: int) -> None:
    assert fewest_loads(order, num_places) == tried_out(order, num_places)


@pytest.mark.parametrize(
    ("order", "num_places", "loads"), [("", 2, 0), ("aaaa", 1, 1), ("abab", 1, 4), ("abab", 2, 2), ("abcabc", 2, 4)]
)
def test_orders_of_which_the_answer_is_plain(order: str, num_places: int, loads: int) -> None:
    assert fewest_loads(order, num_places) == loads


def test_without_a_place_nothing_can_be_served() -> None:
    with pytest.raises(ValueError, match="place"):
        fewest_loads("a", 0)


def test_an_order_has_as_many_requests_of_each_model_and_is_the_seeds() -> None:
    order = random_order("abc", 64, seed=1)
    assert sorted(Counter(order).values()) == [21, 21, 22]
    assert order == random_order("abc", 64, seed=1)
    assert order != random_order("abc", 64, seed=2)


def footprint(name: str, estimated: int, measured: int) -> Footprint:
    return Footprint(name, estimated * MIB, measured * MIB, 0)


SIZES = st.integers(1000, 1500)
THREE = st.tuples(*(st.builds(footprint, st.just(name), SIZES, SIZES) for name in "abc"))


def starts(last: Footprint, serving: list[Footprint], budget: int) -> bool:
    """What the pool asks before it starts one beside those that serve."""
    return sum(each.measured_bytes for each in serving) + last.estimated_bytes <= budget


@given(THREE, st.integers(1, 2))
def test_a_budget_lets_so_many_models_start_in_any_order_and_never_one_more(
    sizes: tuple[Footprint, ...], num_places: int
) -> None:
    try:
        budget = budget_for(sizes, num_places)
    except WrongResult:
        return
    for *serving, last in permutations(sizes, num_places):
        assert starts(last, serving, budget)
    for *serving, last in permutations(sizes, num_places + 1):
        assert not starts(last, serving, budget)


def test_estimates_over_what_is_measured_leave_a_budget_of_two() -> None:
    sizes = [footprint("a", 2509, 2003), footprint("b", 2765, 2374), footprint("c", 1315, 507)]
    assert 2374 + 2509 < budget_for(sizes, 2) // MIB < 2003 + 507 + 2765


@pytest.mark.parametrize("num_places", [1, 2])
def test_sizes_that_leave_no_budget_are_told(num_places: int) -> None:
    sizes = [footprint("a", 3000, 3000), footprint("b", 2900, 500), footprint("tiny", 90, 80)]
    with pytest.raises(WrongResult, match="tiny 80"):
        budget_for(sizes, num_places)
