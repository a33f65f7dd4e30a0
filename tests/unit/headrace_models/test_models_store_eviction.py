"""What is evicted when room is needed: a machine plans and a plain reading of the rules checks each plan."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_models.errors import NoSpace
from headrace_models.store.eviction import Plan, Step, Usage, plan_eviction

SIZES = st.lists(st.integers(1, 50), max_size=6)


@st.composite
def usages(draw: st.DrawFn) -> list[Usage]:
    sizes = draw(st.lists(SIZES, max_size=6))
    return [
        Usage(
            key=f"model-{number}",
            last_used=float(draw(st.integers(0, 3))),
            allocated_bytes=sum(tail) + draw(st.integers(0, 20)),
            tail_bytes=tail,
            kept=draw(st.booleans()),
        )
        for number, tail in enumerate(sizes)
    ]


def _usage(key: str, *tail_bytes: int, last_used: float = 0.0, other_bytes: int = 5, kept: bool = False) -> Usage:
    return Usage(key, last_used, sum(tail_bytes) + other_bytes, tail_bytes, kept)


@given(usages(), st.integers(-5, 300))
def test_a_plan_frees_enough_or_there_is_none(models: list[Usage], needed: int) -> None:
    evictable = sum(usage.allocated_bytes for usage in models if not usage.kept)
    try:
        plan = plan_eviction(models, needed)
    except NoSpace:
        assert evictable < needed
    else:
        assert plan.freed_bytes >= needed
        assert plan.freed_bytes == sum(_freed(models, step) for step in plan.steps)


@given(usages(), st.integers(0, 300))
def test_what_is_kept_is_never_planned(models: list[Usage], needed: int) -> None:
    kept = {usage.key for usage in models if usage.kept}
    assert not kept & {step.key for step in _plan(models, needed).steps}


@given(usages(), st.integers(1, 300))
def test_no_model_goes_while_an_older_one_has_bytes_left(models: list[Usage], needed: int) -> None:
    steps = _plan(models, needed).steps
    by_age = sorted((usage for usage in models if not usage.kept), key=lambda usage: (usage.last_used, usage.key))
    assert [step.key for step in steps] == [usage.key for usage in by_age[: len(steps)]]
    assert all(step.num_chunks is None for step in steps[:-1])


@given(usages(), st.integers(1, 300))
def test_no_chunk_goes_that_is_not_needed(models: list[Usage], needed: int) -> None:
    plan = _plan(models, needed)
    if plan.steps:
        last = plan.steps[-1]
        without_last = plan.freed_bytes - last.freed_bytes
        assert without_last < needed
        if last.num_chunks is not None:
            tail = next(usage for usage in models if usage.key == last.key).tail_bytes
            assert without_last + sum(tail[: last.num_chunks - 1]) < needed


def test_a_model_loses_its_end_and_keeps_its_beginning() -> None:
    assert plan_eviction([_usage("a", 10, 10, 10)], 15) == Plan((Step("a", 2, 20),))


def test_a_model_of_which_everything_must_go_goes_as_a_whole() -> None:
    plan = plan_eviction([_usage("old", 10, 10), _usage("new", 10, 10, last_used=1.0)], 30)
    assert plan == Plan((Step("old", None, 25), Step("new", 1, 10)))


def test_nothing_goes_when_nothing_is_needed() -> None:
    assert plan_eviction([_usage("a", 10)], 0) == Plan(())


def test_without_enough_the_missing_bytes_are_named() -> None:
    models = [_usage("a", 1_000_000, other_bytes=0), _usage("b", 9_000_000, kept=True)]
    with pytest.raises(NoSpace, match=r"^2\.0 MB too few, even without all models but the 1 in use"):
        plan_eviction(models, 3_000_000)


def _plan(models: list[Usage], needed: int) -> Plan:
    try:
        return plan_eviction(models, needed)
    except NoSpace:
        return Plan(())


def _freed(models: list[Usage], step: Step) -> int:
    usage = next(usage for usage in models if usage.key == step.key)
    return usage.allocated_bytes if step.num_chunks is None else sum(usage.tail_bytes[: step.num_chunks])
