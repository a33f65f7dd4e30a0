"""How long steps take is learnt from an engine's counters."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.domain import EngineStats
from headrace_server.scheduling.step_model import StepModel, StepTimes

Step = tuple[int, int, float]
"""Sequences that decode, prompt tokens, seconds."""


def learnt(steps: list[Step], model: StepModel | None = None, stats: EngineStats | None = None) -> StepModel:
    model = StepModel() if model is None else model
    stats = EngineStats() if stats is None else stats
    model.observe(stats)
    for num_decoding, num_prefilled, seconds in steps:
        stats = replace(
            stats,
            num_steps_total=stats.num_steps_total + 1,
            step_seconds_total=stats.step_seconds_total + seconds,
            decode_tokens_total=stats.decode_tokens_total + num_decoding,
            prefill_tokens_total=stats.prefill_tokens_total + num_prefilled,
        )
        model.observe(stats)
        model.observe(stats)  # looking twice tells nothing new
    return model


def steps_of(times: StepTimes, *, num_steps: int = 400, noise: float = 0.0) -> list[Step]:
    chance = Random(0)
    steps = []
    for _ in range(num_steps):
        num_decoding, num_prefilled = chance.randint(0, 32), chance.choice([0, 0, chance.randint(1, 512)])
        seconds = times.per_step + times.per_sequence * num_decoding + times.per_prompt_token * num_prefilled
        steps.append((num_decoding, num_prefilled, seconds * (1 + noise * chance.uniform(-1, 1))))
    return steps


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_coefficients_are_found(noise: float) -> None:
    truth = StepTimes(0.016, 0.001, 0.0002)
    found = learnt(steps_of(truth, noise=noise)).times
    assert found is not None
    assert found.per_step == pytest.approx(truth.per_step, rel=0.1)
    assert found.per_sequence == pytest.approx(truth.per_sequence, rel=0.1)
    assert found.per_prompt_token == pytest.approx(truth.per_prompt_token, rel=0.1)


def test_nothing_is_known_of_few_steps() -> None:
    steps = steps_of(StepTimes(0.016, 0.001, 0.0002), num_steps=16)
    assert learnt(steps[:15]).times is None
    assert learnt(steps).times is not None


def test_an_engine_that_does_not_measure_its_steps_teaches_nothing() -> None:
    model = StepModel()
    for _ in range(100):
        model.observe(EngineStats(generation_tokens_total=5))
    assert model.times is None


def test_a_step_that_always_takes_the_same_number_of_sequences_is_not_blamed_on_them() -> None:
    found = learnt([(32, 0, 0.05)] * 100).times
    assert found is not None
    assert found.per_step == pytest.approx(0.05, rel=0.01)
    assert found.per_sequence == pytest.approx(0.0, abs=1e-6)


def test_an_engine_that_becomes_slower_is_learnt_anew() -> None:
    slow = StepTimes(0.032, 0.002, 0.0004)
    model = learnt(steps_of(StepTimes(0.016, 0.001, 0.0002)))
    found = learnt(
        steps_of(slow, num_steps=8_000), model, EngineStats(num_steps_total=400, step_seconds_total=9.0)
    ).times
    assert found is not None
    assert found.decode_seconds(16) == pytest.approx(slow.decode_seconds(16), rel=0.15)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 8192), st.floats(0.001, 10.0)), min_size=16, max_size=60))
def test_no_coefficient_is_ever_negative_or_beyond_reason(steps: list[Step]) -> None:
    found = learnt(steps).times
    assert found is not None
    for coefficient in (found.per_step, found.per_sequence, found.per_prompt_token):
        assert 0.0 <= coefficient <= 11.0


def test_output_is_cheaper_in_company() -> None:
    times = StepTimes(0.016, 0.001, 0.0)
    assert times.seconds_per_output_token(1) == pytest.approx(0.017)
    assert times.seconds_per_output_token(16) == pytest.approx(0.002)


def test_the_last_steps_are_known_with_whatever_was_in_them() -> None:
    model = StepModel()
    assert model.recent_seconds is None
    learnt([(1, 0, 0.02)] * 100, model)
    assert model.recent_seconds == pytest.approx(0.02)
    stats = EngineStats(num_steps_total=100, step_seconds_total=2.0, decode_tokens_total=100)
    learnt([(1, 256, 0.4)] * 16, model, stats)
    assert model.recent_seconds == pytest.approx(0.21, rel=0.01)
