"""headrace_server.bench.arrivals and prompts: what is sent and when."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.bench.arrivals import ClosedLoop, Load, Poisson, Replay, poisson_times
from headrace_server.bench.prompts import WORDS, make_prompt
from headrace_server.bench.trace import TraceRow

ROWS = (TraceRow(0.0, 10, 4), TraceRow(2.0, 20, 5), TraceRow(6.0, 30, 6))


def test_poisson_gaps_have_the_wanted_mean_and_the_spread_of_an_exponential() -> None:
    times = poisson_times(20.0, 20_000, seed="s")
    gaps = [later - earlier for earlier, later in pairwise((0.0, *times))]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(1 / 20, rel=0.03)
    assert variance == pytest.approx(mean**2, rel=0.08)


@given(st.floats(0.01, 1000), st.integers(1, 50), st.text(max_size=5))
def test_poisson_times_only_rise_and_are_the_same_for_the_same_seed(rate: float, count: int, seed: str) -> None:
    times = poisson_times(rate, count, seed=seed)
    assert times == poisson_times(rate, count, seed=seed)
    assert all(earlier <= later for earlier, later in pairwise((0.0, *times)))


@pytest.mark.parametrize("arrivals", [ClosedLoop(4), Poisson(5.0), Replay(ROWS)])
def test_a_block_is_the_same_for_every_side_and_unlike_any_other_block(
    arrivals: ClosedLoop | Poisson | Replay,
) -> None:
    load = Load(arrivals, num_requests=6, seed=1)
    assert load.block(0) == load.block(0)
    prompts = [request.prompt for number in range(4) for request in load.block(number).requests]
    prompts += [request.prompt for number in range(4) for request in load.warm_up(number).requests]
    prompts += [request.prompt for request in Load(arrivals, num_requests=6, seed=2).block(0).requests]
    assert len(set(prompts)) == len(prompts)


def test_a_closed_loop_is_due_whenever_a_stream_is_free() -> None:
    plan = Load(ClosedLoop(3), num_requests=7, num_tokens=9, num_prompt_tokens=5).block(0)
    assert plan.num_streams == 3
    assert {(request.due_seconds, request.num_tokens) for request in plan.requests} == {(None, 9)}
    assert {len(request.prompt.split()) for request in plan.requests} == {5}


def test_an_open_loop_bounds_nothing() -> None:
    plan = Load(Poisson(2.0), num_requests=3).block(0)
    assert plan.num_streams is None
    assert all(request.due_seconds is not None for request in plan.requests)


def test_a_replay_takes_times_and_lengths_from_the_trace_and_goes_on_where_it_was() -> None:
    load = Load(Replay(ROWS, speed=2.0), num_requests=2)
    first, second = load.block(0).requests, load.block(1).requests
    assert [(r.due_seconds, r.num_tokens, len(r.prompt.split())) for r in first] == [(0.0, 4, 10), (1.0, 5, 20)]
    # The third line, and after the mean gap of 3 s the first line again.
    assert [(r.due_seconds, r.num_tokens) for r in second] == [(0.0, 6), (1.5, 4)]


def test_a_trace_of_one_request_can_be_repeated() -> None:
    plan = Load(Replay(ROWS[:1]), num_requests=3).block(1)
    assert [request.due_seconds for request in plan.requests] == [0.0, 1.0, 2.0]


def test_a_warm_up_is_short_and_asks_for_short_answers() -> None:
    plan = Load(ClosedLoop(4), num_requests=9, num_tokens=128, num_warm_up=5).warm_up(0)
    assert len(plan.requests) == 5
    assert {request.num_tokens for request in plan.requests} == {32}
    assert Load(Poisson(1.0), num_requests=9, num_tokens=3).warm_up(0).requests[0].num_tokens == 3


def test_prompts_differ_from_their_first_words_on() -> None:
    beginnings = {make_prompt(8, str(seed))[:40] for seed in range(1000)}
    assert len(beginnings) == 1000
    assert len(set(WORDS)) == len(WORDS)
