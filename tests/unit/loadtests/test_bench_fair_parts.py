"""What bench-fair computes: service, fairness, thinned traces, goodput, and what it makes of HTTP replies."""

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.bench.summary import Slo
from headrace_server.bench.trace import TraceRow
from headrace_server.errors import UsageError
from loadtests import bench_fair
from loadtests.bench_fair import parse_options
from loadtests.fair.answers import Answer, Refused, goodput, refusals, ttft
from loadtests.fair.deadlines import is_begun_late, overrun_seconds
from loadtests.fair.engine_model import EngineModel
from loadtests.fair.findings import COUNT, RATIO, Findings, at_least, at_most
from loadtests.fair.loads import Ask, poisson, together, with_keys
from loadtests.fair.real import step_tokens
from loadtests.fair.rows import VIRTUAL, RowName
from loadtests.fair.scale import Scale
from loadtests.fair.service import Service, jain, vtc_bound
from loadtests.fair.trace_load import clipped, generated, of_tenants, thinned, trace_rows
from loadtests.fair.virtual_loop import StandsStill
from loadtests.fair.waits import error_of
from loadtests.fair.witness import Seen, Wait

ASK = Ask("one", 100, 11)
SLO = Slo(ttft_seconds=1.5, tpot_seconds=0.2)


# ------------------------------------------------------------------------------------------------------- fairness


def service_of(*told: tuple[str, float, float]) -> Service:
    service = Service()
    for tenant, at, amount in told:
        service.add(tenant, at, amount)
    return service


def test_service_between_two_moments_has_its_beginning_and_not_its_end() -> None:
    service = service_of(("a", 1.0, 10), ("a", 2.0, 5), ("a", 3.0, 2))
    assert service.between("a", 1.0, 3.0) == 15
    assert service.between("a", 1.5, 9.0) == 7
    assert service.between("nobody", 0.0, 9.0) == 0


@pytest.mark.parametrize(
    ("shares", "index"), [([1, 1, 1], 1.0), ([1, 0, 0], 1 / 3), ([1, 0], 0.5), ([3, 1], 0.8), ([2, 2], 1.0)]
)
def test_jains_index_is_1_for_equals_and_one_nth_where_one_has_everything(shares: list[float], index: float) -> None:
    assert jain(shares) == pytest.approx(index)


@pytest.mark.parametrize("shares", [[], [0.0, 0.0]])
def test_without_shares_there_is_no_index(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="no shares"):
        jain(shares)


def test_shares_are_of_what_weights_entitle_to() -> None:
    service = service_of(("a", 0.0, 10), ("b", 0.0, 40))
    assert service.shares({"a": 1.0, "b": 4.0}, 0.0, 1.0) == {"a": 0.5, "b": 0.5}
    with pytest.raises(ValueError, match="nobody"):
        service.shares({"a": 1.0}, 5.0, 6.0)


def test_windows_are_whole_ones_only() -> None:
    service = service_of(*(("a", at / 2, 1) for at in range(40)), ("b", 0.0, 10), ("b", 10.0, 10))
    windows = list(service.windows({"a": 1.0, "b": 1.0}, 0.0, 19.0, 5.0))
    assert [round(shares["b"], 6) for shares in windows] == [0.5, 0.0, 0.5]


def test_the_gap_is_the_largest_difference_in_any_part_of_the_time() -> None:
    service = service_of(("a", 1.0, 10), ("b", 2.0, 30), ("a", 3.0, 20))
    assert service.gap("a", "b", 0.0, 4.0) == 30
    assert service.gap("a", "b", 0.0, 2.0) == 10
    assert service.gap("a", "b", 3.5, 4.0) == 0


def test_what_both_get_in_one_moment_makes_no_gap() -> None:
    service = service_of(("a", 1.0, 10), ("b", 1.0, 10), ("b", 2.0, 4), ("a", 2.0, 4))
    assert service.gap("a", "b", 0.0, 3.0) == 0


TOLD = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 50)), max_size=20)


@given(TOLD)
def test_the_gap_is_what_trying_out_every_part_of_the_time_finds(told: list[tuple[str, int, int]]) -> None:
    service = service_of(
        *((tenant, float(at), float(amount)) for tenant, at, amount in sorted(told, key=lambda t: t[1]))
    )
    tried = max(
        abs(service.between("a", begin, end) - service.between("b", begin, end))
        for begin in range(11)
        for end in range(begin, 11)
    )
    assert service.gap("a", "b", 0.0, 10.0) == tried


def test_the_bound_is_of_the_larger_of_prompts_and_batch() -> None:
    assert vtc_bound(longest_prompt_tokens=5000, batch_tokens=1000) == 10_000
    assert vtc_bound(longest_prompt_tokens=5000, batch_tokens=4000) == 16_000


# ---------------------------------------------------------------------------------------------------------- loads


def test_an_engine_serves_as_many_as_the_time_of_its_steps_allows() -> None:
    engine = EngineModel(
        step_ms=10, decode_us_per_sequence=1000, prefill_us_per_token=100, max_num_seqs=10, kv_cache_tokens=10_000
    )
    assert engine.step_seconds(num_decoding=10, num_prompt_tokens=100) == pytest.approx(0.03)
    assert engine.request_seconds(100, 10) == pytest.approx(0.01 + 10 * 0.002)
    assert engine.requests_per_second(100, 10) == pytest.approx(1 / 0.03)
    narrow = replace(engine, kv_cache_tokens=110)
    assert narrow.request_seconds(100, 10) == pytest.approx(0.01 + 10 * 0.011)


def test_loads_are_the_seeds_and_come_in_the_order_of_time() -> None:
    load = together(poisson(ASK, 5.0, 20.0, seed="a"), poisson(ASK, 2.0, 10.0, seed="b", begin_seconds=3.0))
    assert len(load) == 120
    assert list(load) == sorted(load, key=lambda due: due.at_seconds)
    assert load == together(poisson(ASK, 5.0, 20.0, seed="a"), poisson(ASK, 2.0, 10.0, seed="b", begin_seconds=3.0))


def test_many_keys_are_one_tenants() -> None:
    asks = with_keys(ASK, 16)
    assert len({ask.key for ask in asks}) == 16
    assert {ask.tenant for ask in asks} == {"one"}


# ---------------------------------------------------------------------------------------------------------- trace


def test_the_generator_has_the_traces_statistics() -> None:
    rows = generated(3500.0, seed=1)
    gaps = [later.at_seconds - earlier.at_seconds for earlier, later in zip(rows, rows[1:], strict=False)]
    assert len(rows) == pytest.approx(19_366, rel=0.05)
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(1.09, abs=0.1)
    assert statistics.median(row.num_prompt_tokens for row in rows) == pytest.approx(1020, rel=0.05)
    assert statistics.median(row.num_tokens for row in rows) == pytest.approx(129, rel=0.05)
    assert statistics.fmean(row.num_prompt_tokens for row in rows) == pytest.approx(1155, rel=0.1)
    assert statistics.fmean(row.num_tokens for row in rows) == pytest.approx(211, rel=0.1)
    counts = [sum(minute * 60 <= row.at_seconds < minute * 60 + 60 for row in rows) for minute in range(58)]
    assert 8 < statistics.pvariance(counts) / statistics.fmean(counts) < 28


def test_the_generator_is_its_seeds() -> None:
    assert generated(60.0, seed=1) == generated(60.0, seed=1) != generated(60.0, seed=2)


def test_thinning_keeps_the_share_that_is_asked_for_and_changes_nothing_else() -> None:
    rows = generated(600.0, seed=3)
    kept = thinned(rows, 0.25, seed=4)
    assert len(kept) == pytest.approx(len(rows) / 4, rel=0.1)
    assert set(kept) <= set(rows)
    assert list(kept) == sorted(kept, key=lambda row: row.at_seconds)
    with pytest.raises(ValueError, match="too few"):
        thinned(rows, 1.5, seed=4)


def test_clipping_cuts_lengths_and_leaves_the_times() -> None:
    rows = (TraceRow(0.0, 5, 500), TraceRow(1.0, 5000, 5))
    assert clipped(rows, most_prompt_tokens=100, most_output_tokens=50) == (TraceRow(0.0, 5, 50), TraceRow(1.0, 100, 5))


def test_tenants_get_requests_by_their_odds() -> None:
    load = of_tenants(generated(600.0, seed=3), {"heavy": 0.75, "light": 0.25}, seed=5)
    assert sum(due.ask.tenant == "light" for due in load) == pytest.approx(len(load) / 4, rel=0.1)


def test_a_trace_that_is_there_is_read_and_a_broken_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,7,8\n2023-11-16 18:02:00,1,1\n")
    rows, source = trace_rows(path, 60.0, seed=1)
    assert rows == (TraceRow(0.0, 7, 8),)
    assert source == "the first 60 s of trace.csv"
    assert trace_rows(tmp_path / "absent.csv", 60.0, seed=1) == (
        generated(60.0, seed=1),
        "a generator with the trace's statistics",
    )
    path.write_text("when\n1\n")
    with pytest.raises(UsageError, match="no column"):
        trace_rows(path, 60.0, seed=1)


# -------------------------------------------------------------------------------------------------------- answers


def answer(due: float, first: float | None = None, end: float | None = None, refused: str = "") -> Answer:
    return Answer(ASK, due, first, end, Refused(refused) if refused else None)


def test_a_good_answer_is_whole_prompt_and_fluent() -> None:
    assert answer(10.0, 11.0, 13.0).meets(SLO)
    assert not answer(10.0, 11.6, 13.0).meets(SLO)
    assert not answer(10.0, 11.0, 13.1).meets(SLO)
    assert not answer(10.0, 11.0).meets(SLO)
    assert not answer(10.0, refused="queue_full").meets(SLO)


def test_a_single_token_has_no_further_ones_to_be_slow() -> None:
    assert replace(answer(0.0, 1.0, 1.0), ask=replace(ASK, num_output_tokens=1)).meets(SLO)


def test_goodput_counts_what_was_due_in_its_time() -> None:
    answers = [answer(at, at + 0.1, at + 0.5) for at in (0.5, 1.0, 1.5, 2.0)]
    assert goodput([*answers, answer(1.2, refused="x")], SLO, begin=1.0, end=2.0) == 2.0


def test_who_gets_no_text_has_waited_for_as_long_as_anybody_looked() -> None:
    answers = [answer(0.0, 1.0, 2.0), answer(0.0), answer(0.0, refused="x")]
    assert ttft(answers, percent=0, most_seconds=60.0) == 1.0
    assert ttft(answers, percent=100, most_seconds=60.0) == 60.0


def test_refusals_are_counted_by_their_code() -> None:
    answers = [answer(0.0, refused="a"), answer(0.0, refused="b"), answer(0.0, refused="a"), answer(0.0, 1.0, 1.0)]
    assert refusals(answers) == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("told", "waited", "error"), [(1.0, 2.0, 0.5), (3.0, 2.0, 0.5), (0.0, 0.05, 0.25), (0.1, 0.05, 0.25)]
)
def test_an_error_counts_in_relation_to_the_wait_or_to_a_fifth_of_a_second(
    told: float, waited: float, error: float
) -> None:
    assert error_of(Wait(told, waited)) == pytest.approx(error)


def test_a_prompt_is_begun_late_if_it_is_let_in_late_or_done_a_whole_step_late() -> None:
    seen = Seen(deadline=10.0, admitted_at=9.0, began_at=10.1)
    assert not is_begun_late(seen, step_seconds=0.2)
    assert is_begun_late(replace(seen, began_at=10.3), step_seconds=0.2)
    assert is_begun_late(replace(seen, admitted_at=10.01), step_seconds=0.2)
    assert not is_begun_late(Seen(deadline=10.0), step_seconds=0.2)
    assert not is_begun_late(Seen(deadline=None, admitted_at=99.0, began_at=99.0), step_seconds=0.2)


def test_an_overrun_is_what_the_last_token_comes_after_the_deadline() -> None:
    assert overrun_seconds(Seen(deadline=10.0, last_token_at=10.5)) == 0.5
    assert overrun_seconds(Seen(deadline=10.0, last_token_at=9.5)) == 0.0
    assert overrun_seconds(Seen(deadline=10.0)) == 0.0


# ------------------------------------------------------------------------------------------- findings, command line


def test_a_line_is_judged_by_our_figure_and_shows_the_other_beside_it() -> None:
    findings = Findings()
    findings.add("ratio", RATIO, [1.2, 1.4, 1.6], theirs=[9.0, 11.0], target=at_most(1.5))
    findings.add("count", COUNT, 3, target=at_least(4))
    ratio, count = findings.lines
    assert (ratio.found.value, ratio.theirs, ratio.met) == (1.4, 10.0, True)
    assert (count.met, count.shown(3)) == (False, "3")
    assert findings.as_document()["lines"][0]["key"] == "ratio"  # type: ignore[index]


def test_every_row_has_somebody_who_measures_it() -> None:
    assert set(VIRTUAL) | {RowName.REAL} == set(RowName)


def test_the_command_line_chooses_rows_in_their_own_order() -> None:
    assert parse_options(["--rows", "real,flood"]).rows == (RowName.FLOOD, RowName.REAL)
    assert RowName.REAL not in parse_options(["--virtual"]).rows
    assert parse_options(["--limits", "8,24"]).real.limits == (8, 24)
    assert parse_options(["--no-peers"]).real.limits == ()


@pytest.mark.parametrize("arguments", [["--rows", "nonsense"], ["--limits", "0"], ["--runs", "0"]])
def test_a_wrong_command_line_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def run_main(monkeypatch: pytest.MonkeyPatch, folder: Path, row: Callable[[Scale], Findings]) -> int:
    """`bench_fair --rows weights,keys`, with `row` in the place of `weights` and one that finds nothing as `keys`."""
    monkeypatch.setattr(bench_fair, "VIRTUAL", {RowName.WEIGHTS: row, RowName.KEYS: lambda _scale: Findings()})
    monkeypatch.setattr("sys.argv", ["bench_fair", "--rows", "weights,keys", "--results", str(folder)])
    return bench_fair.main()


def test_what_was_found_is_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(scale: Scale) -> Findings:
        findings = Findings(remarks=["a remark"])
        findings.add("furthest", COUNT, scale.num_requests, theirs=7, target=at_most(1))
        return findings

    assert run_main(monkeypatch, tmp_path, row) == 0
    printed = capsys.readouterr().out
    assert "furthest" in printed
    assert "≤ 1 missed" in printed
    assert "weights: a remark" in printed
    document = json.loads(next(tmp_path.glob("bench-fair-*.json")).read_text())
    assert document["rows"]["weights"]["lines"][0]["met"] is False
    assert document["failed"] == {}


def test_a_row_that_fails_is_told_and_the_others_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(_scale: Scale) -> Findings:
        raise StandsStill("everybody waits")

    assert run_main(monkeypatch, tmp_path, row) == 1
    assert "not measured: weights" in capsys.readouterr().err
    document = json.loads(next(tmp_path.glob("bench-fair-*.json")).read_text())
    assert document["failed"] == {"weights": "everybody waits"}
    assert "keys" in document["rows"]


def test_an_interrupted_run_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def row(_scale: Scale) -> Findings:
        raise KeyboardInterrupt

    assert run_main(monkeypatch, tmp_path, row) == 130
    assert list(tmp_path.iterdir()) == []


def test_the_size_of_a_step_is_read_off_the_engines_arguments() -> None:
    assert step_tokens(("--model", "x", "--max-num-batched-tokens", "512")) == 512
    assert step_tokens(("--max-num-batched-tokens=768",)) == 768
    assert step_tokens(()) == 2048
