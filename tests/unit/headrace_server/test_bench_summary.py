"""headrace_server.bench.summary: what several answers come to."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.bench import measures
from headrace_server.bench.outcomes import Complete, Failed, Outcome, Refused
from headrace_server.bench.summary import ClientCost, Slo, Tally, figures_of, is_good, latencies_of, tally_of

SLO = Slo(ttft_seconds=1.5, tpot_seconds=0.2)


def answer(began_at: float, *stamps: float, num_tokens: int | None = None) -> Complete:
    count = len(stamps) if num_tokens is None else num_tokens
    return Complete(began_at, 0.0, stamps, ended_at=stamps[-1], num_tokens=count)


def test_throughput_runs_from_the_first_request_to_the_last_token() -> None:
    figures = figures_of([answer(0.0, 1.0, 2.0, 3.0, num_tokens=4), answer(0.5, 1.5, 5.0)], stream=True, slo=SLO)
    assert figures[measures.THROUGHPUT] == 6 / 5.0
    assert figures[measures.REQUEST_RATE] == 2 / 5.0
    assert figures[measures.TTFT_P50] == 1.0
    assert figures[measures.ITL_P50] == 1.0
    assert figures[measures.ITL_P99] == pytest.approx(1.0 + 0.98 * 2.5)
    assert figures[measures.LATENCY_P50] == 3.75


def test_time_per_token_counts_tokens_and_gaps_count_events() -> None:
    """Nine tokens in three events: two gaps of 1 s, and 2 s for the eight tokens after the first."""
    latencies = latencies_of([answer(0.0, 1.0, 2.0, 3.0, num_tokens=9)])
    assert latencies.itl == [1.0, 1.0]
    assert latencies.tpot == [2.0 / 8]
    assert latencies.ttft == [1.0]
    figures = figures_of([answer(0.0, 1.0, 2.0, 3.0, num_tokens=9)], stream=True, slo=SLO)
    assert figures[measures.EVENTS_PER_TOKEN] == pytest.approx(1 / 3)


def test_one_token_has_no_time_per_token() -> None:
    figures = figures_of([answer(0.0, 1.0)], stream=True, slo=SLO)
    assert measures.TPOT_P50 not in figures
    assert measures.ITL_P50 not in figures


@pytest.mark.parametrize(
    ("stamps", "good"),
    [((1.5, 1.7), True), ((1.51, 1.6), False), ((1.0, 1.21), False), ((1.5,), True), ((2.0,), False)],
)
def test_goodput_counts_answers_that_meet_both_limits(stamps: tuple[float, ...], good: bool) -> None:
    assert is_good(answer(0.0, *stamps), SLO) is good


def test_goodput_is_a_rate() -> None:
    figures = figures_of([answer(0.0, 1.0, 1.1), answer(0.0, 1.0, 4.0)], stream=True, slo=SLO)
    assert figures[measures.GOODPUT] == 1 / 4.0


def test_answers_in_one_piece_have_latencies_and_nothing_else() -> None:
    piece = Complete(0.0, 0.0, (), ended_at=2.0, num_tokens=8)
    figures = figures_of([piece], stream=False, slo=SLO)
    assert set(figures) == {measures.REQUEST_RATE, measures.LATENCY_P50, measures.LATENCY_P99}


outcomes = st.lists(
    st.sampled_from([answer(0.0, 1.0), Refused(429, "busy"), Refused(503, "down"), Failed("cut"), Failed("late")])
)


@given(outcomes)
def test_every_request_has_one_outcome(found: list[Outcome]) -> None:
    tally = tally_of(found, len(found))
    assert tally.num_sent == tally.num_complete + tally.refused.total() + tally.num_failed == len(found)


def test_a_request_without_an_outcome_is_an_error_of_ours() -> None:
    with pytest.raises(RuntimeError, match="3 requests were sent, and 2 have an outcome"):
        tally_of([answer(0.0, 1.0), Failed("cut")], 3)


def test_tallies_add_up() -> None:
    total = Tally()
    total.extend(tally_of([Refused(429, "busy"), Failed("cut")], 2))
    total.extend(tally_of([Refused(429, "busy"), answer(0.0, 1.0)], 2))
    total.check_integrity()
    assert total.refused == Counter({429: 2})
    assert total.reasons == Counter({"429: busy": 2, "cut": 1})


@pytest.mark.parametrize(
    ("cost", "bottleneck"),
    [
        (ClientCost(0.7, 1.0, 10, 0.0), False),
        (ClientCost(0.71, 1.0, 10, 0.0), True),
        (ClientCost(0.1, 1.0, 10, 0.005), False),
        (ClientCost(0.1, 1.0, 10, 0.006), True),
    ],
)
def test_a_busy_core_or_late_requests_make_the_client_the_bottleneck(cost: ClientCost, bottleneck: bool) -> None:
    assert cost.was_the_bottleneck is bottleneck
