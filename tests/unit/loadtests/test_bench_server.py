"""loadtests.bench_server and bench_report, as far as they decide something."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from loadtests.bench_report import ROWS, Measure, Samples, Setup, document, table
from loadtests.bench_server import Action, Step, parse_options, run_plan, without_paths
from loadtests.launcher import Side

SETUP = Setup("model", 16, 128, 1, 4, both_sides_up=True, engine_arguments=("--model", "model"))


def letters(steps: list[Step], action: Action) -> str:
    return "".join(step.side.value[0] for step in steps if step.action is action)


def test_sides_alternate_in_starts_and_in_pairs_of_blocks() -> None:
    first, second = (run_plan(number, 4, together=True) for number in (0, 1))
    assert (letters(first, Action.START), letters(first, Action.BLOCK)) == ("hv", "hvvhhvvh")
    assert (letters(second, Action.START), letters(second, Action.BLOCK)) == ("vh", "vhhvvhhv")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("number", [0, 1])
def test_every_server_starts_before_its_blocks_and_stops_after_them(number: int, together: bool) -> None:
    plan = run_plan(number, 4, together=together)
    for side in Side:
        actions = [step.action for step in plan if step.side is side]
        assert actions == [Action.START, *[Action.BLOCK] * 4, Action.STOP]


def test_where_two_do_not_fit_one_stops_before_the_other_starts() -> None:
    plan = run_plan(0, 2, together=False)
    assert [step.side for step in plan] == [Side.HEADRACE] * 4 + [Side.VLLM] * 4


def samples(ours: float) -> Samples:
    made = Samples()
    for measure in (Measure.FIRST_ANSWER, Measure.THROUGHPUT):
        made.add(measure, Side.HEADRACE, ours)
        made.add(measure, Side.VLLM, 100.0)
    made.add(Measure.LIVEZ, Side.HEADRACE, 1.5)
    return made


def printed(made: Samples, setup: Setup = SETUP) -> list[str]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(made, setup))
    return capture.get().splitlines()


def line(made: Samples, title: str, setup: Setup = SETUP) -> str:
    (found,) = (text for text in printed(made, setup) if title in text)
    return found


def test_a_missed_target_is_called_missed() -> None:
    assert "≤ 1.05 missed" in line(samples(106.0), "first answer")
    assert "≥ 0.97 met" in line(samples(106.0), "throughput")
    assert "≤ 1.05 met" in line(samples(96.0), "first answer")
    assert "≥ 0.97 missed" in line(samples(96.0), "throughput")


def test_the_file_says_what_the_table_says() -> None:
    content = document(samples(106.0), SETUP, began=datetime.now(UTC), measured_on={}, num_complete_runs=1)
    results = content["results"]
    assert isinstance(results, dict)
    assert {name: fields["met"] for name, fields in results.items()} == {
        "first_answer_seconds": False,
        "tokens_per_second": True,
    }
    assert content["samples"] == {
        "first_answer_seconds": {"headrace": [106.0], "vllm": [100.0]},
        "tokens_per_second": {"headrace": [106.0], "vllm": [100.0]},
        "livez_seconds": {"headrace": [1.5]},
    }


def test_the_throughput_target_holds_for_its_number_of_streams_only() -> None:
    other = replace(SETUP, num_streams=1)
    assert "≥" not in line(samples(50.0), "throughput", other)


def test_what_only_one_side_has_is_shown_without_a_ratio() -> None:
    assert line(samples(100.0), "/livez").split() == ["/livez", "(s)", "1.50"]


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    made = Samples()
    for measure in Measure:
        for side, value in ((Side.HEADRACE, 1234.5), (Side.VLLM, 999.5)):
            made.add(measure, side, value / ROWS[measure].scale)
    assert "≤ 1.05 missed" in line(made, "first answer")
    assert not any("…" in text for text in printed(made))


def test_a_sample_of_zero_has_no_ratio_and_spoils_nothing() -> None:
    made = samples(100.0)
    made.add(Measure.SERVER_CPU, Side.HEADRACE, 50e-6)
    made.add(Measure.SERVER_CPU, Side.VLLM, 0.0)
    assert line(made, "server CPU").split()[-2:] == ["50", "0"]
    assert Measure.SERVER_CPU not in made.comparisons()


def test_samples_of_several_runs_are_strung_together() -> None:
    together = samples(1.0)
    together.extend(samples(2.0))
    assert together.of(Measure.THROUGHPUT, Side.HEADRACE) == [1.0, 2.0]
    assert together.of(Measure.THROUGHPUT, Side.VLLM) == [100.0, 100.0]


def test_files_do_not_say_where_the_model_lies() -> None:
    assert without_paths(["--model", "/home/me/smol", "--served-model-name", "bench"]) == (
        *("--model", "smol"),
        *("--served-model-name", "bench"),
    )


def test_the_time_limit_grows_with_the_number_of_runs() -> None:
    assert parse_options([]).limit_seconds == 450
    assert parse_options(["--runs", "1"]).limit_seconds == 150
    assert parse_options(["--limit-seconds", "900"]).limit_seconds == 900


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--tokens", "1"], ["--streams", "-1"], ["--what"]])
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2
