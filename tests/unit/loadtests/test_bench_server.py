"""loadtests.bench_server, programmes, rows and bench_report, as far as they decide something."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from headrace_server.bench import measures
from headrace_server.bench.arrivals import ClosedLoop
from headrace_server.bench.measures import Measure, Samples
from headrace_server.bench.record import Record
from headrace_server.bench.summary import BlockResult, ClientCost, Latencies, Tally
from loadtests.bench_report import Results, content, picture, table, without_paths
from loadtests.bench_server import parse_options, sides_up_together
from loadtests.launcher import SideName, Subject
from loadtests.programmes import START, SubjectName, programme_of
from loadtests.rows import ENGINE, OURS, VLLM, Kind, Row, RowPlan, rows_of
from loadtests.sides import FIRST_ANSWER

SUBJECT = Subject("{}", ("--model", "/home/me/smol", "--served-model-name", "bench"), Path("/home/me/smol"), True)
H, V, E = SideName.HEADRACE, SideName.VLLM, SideName.ENGINE


def samples(measure: Measure, ours: float, vllm: float, engine: float) -> Samples:
    made = Samples()
    for factor in (1.0, 1.02, 0.99):
        for side, value in ((OURS, ours), (VLLM, vllm), (ENGINE, engine)):
            made.add(measure, side, value * factor)
    return made


def row_of(plan: RowPlan, made: Samples) -> Row:
    (row,) = rows_of(made, [plan])
    return row


def planned(label: str, kind: Kind, measure: Measure, subject: SubjectName = SubjectName.ONE_LAYER) -> RowPlan:
    (plan,) = (p for p in programme_of(subject).rows[label] if (p.kind, p.measure) == (kind, measure))
    return plan


@pytest.mark.parametrize(
    ("label", "ours", "verdict"),
    [
        ("16 streams", 1500.0, "≥ 1.50 met"),
        ("32 streams", 1350.0, "≥ 1.50 missed 10%"),
        ("64 streams", 1250.0, "≥ 1.25 met"),
        ("64 streams", 1000.0, "≥ 1.25 missed 20%"),
    ],
)
def test_throughput_against_vllm_has_a_target_for_each_number_of_streams(label: str, ours: float, verdict: str) -> None:
    plan = planned(label, Kind.AGAINST_VLLM, measures.THROUGHPUT)
    assert row_of(plan, samples(measures.THROUGHPUT, ours, 1000.0, 2000.0)).verdict == verdict


@pytest.mark.parametrize("label", ["16 streams", "32 streams", "64 streams"])
def test_throughput_against_the_engine_alone_may_lose_a_fifth(label: str) -> None:
    plan = planned(label, Kind.AGAINST_ENGINE, measures.THROUGHPUT)
    assert row_of(plan, samples(measures.THROUGHPUT, 1600.0, 1.0, 2000.0)).verdict == "≥ 0.80 met"
    assert row_of(plan, samples(measures.THROUGHPUT, 1200.0, 1.0, 2000.0)).verdict == "≥ 0.80 missed 25%"


def test_the_api_layer_s_cost_is_what_a_server_costs_more_than_the_engine_alone() -> None:
    plan = planned("16 streams", Kind.API_LAYER, measures.SERVER_CPU)
    row = row_of(plan, samples(measures.SERVER_CPU, 130e-6, 200e-6, 100e-6))
    assert row.found.value == pytest.approx(0.3)
    assert [row.ours, row.theirs] == pytest.approx([30e-6, 100e-6])
    assert row.verdict == "≤ 0.35 met"


def test_a_server_that_costs_no_more_than_the_engine_has_no_ratio() -> None:
    plan = planned("16 streams", Kind.API_LAYER, measures.SERVER_CPU)
    assert list(rows_of(samples(measures.SERVER_CPU, 130e-6, 100e-6, 100e-6), [plan])) == []


@pytest.mark.parametrize(("ours", "verdict"), [(10.4e-3, "≤ 0.50 met"), (10.6e-3, "≤ 0.50 missed 20%")])
def test_added_latency_is_judged_in_milliseconds(ours: float, verdict: str) -> None:
    plan = planned("unary", Kind.ADDED, measures.LATENCY_P50)
    row = row_of(plan, samples(measures.LATENCY_P50, ours, 12e-3, 10e-3))
    assert row.verdict == verdict
    assert row.theirs == pytest.approx(2e-3)


def test_a_median_that_meets_its_target_with_an_interval_that_does_not_is_missed() -> None:
    plan = planned("16 streams", Kind.AGAINST_VLLM, measures.THROUGHPUT, SubjectName.SMOLLM2)
    made = Samples()
    for ours in (1.01, 0.9, 1.02, 0.95, 1.03):
        made.add(measures.THROUGHPUT, OURS, ours)
        made.add(measures.THROUGHPUT, VLLM, 1.0)
    assert row_of(plan, made).verdict == "≥ 1.00 missed (CI)"


def test_sides_that_do_not_fit_together_are_up_one_after_the_other() -> None:
    programme = programme_of(SubjectName.ONE_LAYER)
    assert sides_up_together(programme, 0, on_cpu=True) == [(H, V, E)]
    assert sides_up_together(programme, 1, on_cpu=True) == [(E, V, H)]
    assert sides_up_together(programme, 0, on_cpu=False) == [(H,), (V,), (E,)]


@pytest.mark.parametrize("subject", list(SubjectName))
def test_every_load_has_rows_and_every_row_a_load(subject: SubjectName) -> None:
    programme = programme_of(subject)
    assert set(programme.rows) - {START} == set(programme.loads)


def test_blocks_of_the_one_layer_model_are_long_enough_for_processor_time() -> None:
    for load in programme_of(SubjectName.ONE_LAYER).loads.values():
        if load.stream:
            assert load.num_requests * load.num_tokens >= 16_000
            assert isinstance(load.arrivals, ClosedLoop)
            assert load.num_requests >= 2 * load.arrivals.num_streams


def result(value: float, *, stream: bool) -> BlockResult:
    wanted = measures.MEASURES if stream else (measures.LATENCY_P50, measures.LATENCY_P99, measures.REQUEST_RATE)
    latencies = Latencies([value] * 5, [value] * 200, [value] * 5, [value] * 5)
    return BlockResult(
        {measure: value / measure.scale for measure in wanted},
        latencies,
        Tally(5, 5),
        ClientCost(0.1, 1.0, 100, 0.0),
        num_tokens=100,
    )


def results(subject: SubjectName = SubjectName.ONE_LAYER) -> Results:
    made = Results(programme_of(subject))
    for side, value in ((OURS, 1234.5), (VLLM, 2345.6), (ENGINE, 1000.0)):
        if subject is SubjectName.SMOLLM2 and side == ENGINE:
            continue
        made.starts.add(FIRST_ANSWER, side, value / 100)
        for label, load in made.programme.loads.items():
            for factor in (1.0, 1.1, 1.2):
                shown = value * factor if load.stream else value * factor / 500
                made.records.setdefault(label, Record()).add(side, result(shown, stream=load.stream))
    return made


def printed(made: Results) -> list[str]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(made))
    return capture.get().splitlines()


@pytest.mark.parametrize("subject", list(SubjectName))
def test_the_table_fits_a_terminal_of_80_columns_and_has_a_line_for_each_row(subject: SubjectName) -> None:
    made = results(subject)
    lines = printed(made)
    assert not any("…" in text for text in lines)
    num_rows = sum(len(rows) for rows in made.programme.rows.values())
    assert len(list(made.rows())) == num_rows
    assert sum("met" in text or "missed" in text for text in lines) == sum(
        plan.target is not None for rows in made.programme.rows.values() for plan in rows
    )


def test_what_was_not_measured_has_no_row() -> None:
    assert list(Results(programme_of(SubjectName.ONE_LAYER)).rows()) == []


def test_the_file_says_what_the_table_says_and_nothing_of_the_machine_s_folders() -> None:
    made = content(results(), SUBJECT, began=datetime(2026, 1, 1, tzinfo=UTC), measured_on={})
    text = json.dumps(made)
    assert "/home" not in text
    assert len(text) < 200 * 1024
    rows = made["rows"]
    assert isinstance(rows, list)
    throughput = next(row for row in rows if row["row"] == "throughput (tokens/s)")
    assert (throughput["load"], throughput["target"], throughput["met"]) == ("16 streams", "≥ 1.5", False)
    assert made["engine_arguments"] == ["--model", "smol", "--served-model-name", "bench"]


@pytest.mark.parametrize("subject", list(SubjectName))
def test_a_picture_of_each_subject_can_be_drawn(tmp_path: Path, subject: SubjectName) -> None:
    pytest.importorskip("matplotlib")
    picture(results(subject), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_files_do_not_say_where_the_model_lies() -> None:
    assert without_paths(("--model", "/home/me/smol")) == ["--model", "smol"]


def test_all_subjects_are_measured_unless_some_are_named() -> None:
    assert parse_options([]).subjects == tuple(SubjectName)
    one = parse_options(["--subject", "one-layer", "--blocks", "2"])
    assert (one.subjects, one.num_blocks, one.num_runs) == ((SubjectName.ONE_LAYER,), 2, None)
    assert programme_of(SubjectName.ONE_LAYER, num_blocks=2).num_blocks == 2


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--blocks", "x"], ["--subject", "gpt"], ["--what"]])
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2
