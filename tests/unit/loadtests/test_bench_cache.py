"""loadtests.bench_cache: what it decides, what it shows, and that its rows measure real fetches of small models."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from loadtests import cache_fetching, cache_kill, cache_picture
from loadtests.bench_cache import parse_options
from loadtests.cache_bytes import measure_bytes
from loadtests.cache_checkpoint import Shape, write_checkpoint
from loadtests.cache_fetching import AGAIN, measure_fetching
from loadtests.cache_findings import ORIGIN_BYTES, RATIO, SECONDS, Findings, at_most, first_line, slug
from loadtests.cache_first_token import BOOT, FAST, FIRST_TOKEN, HUB, LOCAL, SLOW
from loadtests.cache_kill import REFETCHED, STRAY, Victim, measure_kill
from loadtests.cache_report import REPORT
from loadtests.cache_rows import MEASUREMENTS, RowName
from loadtests.cache_served import serve
from loadtests.cache_setting import Setting
from loadtests.cache_swap import FIRST, RETURN, measure_swap

MIB = 2**20
# 4 MiB of layers, 1 MiB at each end.
SMALL = Shape(num_layers=8, vocabulary=4096, num_shards=2, hidden_size=128)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "small", SMALL, seed=7)


@pytest.fixture
def setting(directory: Path, tmp_path: Path) -> Setting:
    model = serve("acme/small", directory)
    return Setting(model, tmp_path, None, 1, lambda _line: None, large_shape=SMALL, swapped_shape=SMALL)


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"acme"}


def test_rows_are_measured_in_their_order_and_each_has_a_measurement() -> None:
    assert parse_options([]).rows == tuple(RowName)
    assert parse_options(["--rows", "swap, kill"]).rows == (RowName.KILL, RowName.SWAP)
    assert list(MEASUREMENTS) == list(RowName)


@pytest.mark.parametrize("arguments", [["--rows", "everything"], ["--runs", "0"], ["--rows", ""]])
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2


def findings() -> Findings:
    found = Findings()
    for number, (ours, theirs) in enumerate(((2.2, 2.0), (2.0, 2.0), (3.6, 3.0))):
        found.samples.add(SECONDS, "ours", ours)
        found.samples.add(SECONDS, "theirs", theirs)
        found.samples.add(ORIGIN_BYTES, "ours", number * MIB)
    return found


def test_a_ratio_is_of_pairs_and_a_worst_line_is_judged_by_its_highest_run() -> None:
    found = findings()
    found.ratio("time", SECONDS, "ours", "theirs", at_most(1.1))
    found.worst("bytes", ORIGIN_BYTES, "ours", at_most(1.5 * MIB))
    found.median("bytes", ORIGIN_BYTES, "ours", at_most(1.5 * MIB))
    found.median("never measured", ORIGIN_BYTES, "theirs", at_most(0))
    ratio, worst, middle = found.lines
    assert ratio.found.value == pytest.approx(1.1)
    assert (ratio.found.range.low, ratio.found.range.high) == pytest.approx((1.0, 1.2))
    assert ratio.found.num_pairs == 3
    assert (worst.found.value, worst.met) == (2 * MIB, False)
    assert (middle.found.value, middle.met) == (MIB, True)
    assert (worst.shown(worst.found.value), ratio.key) == ("2.0 MiB", "seconds_ratio_ours")


def printed(found: dict[str, Findings]) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(REPORT.table(found))
        for remark in REPORT.remarks(found):
            console.print(remark, soft_wrap=True, markup=False)
    return capture.get()


def test_the_table_and_the_document_say_the_same_and_the_document_has_every_sample() -> None:
    found = findings()
    found.ratio("time", SECONDS, "ours", "theirs", at_most(1.05))
    found.worst("bytes", ORIGIN_BYTES, "ours", at_most(2 * MIB))
    found.failed("a peer", ValueError("no such thing\n/a/path"))
    text = printed({"fetch": found})
    assert "1.100 ×" in text
    assert "≤ 1.050 missed" in text
    assert "≤ 2.0 met" in text
    assert "fetch: a peer: no such thing" in text
    document = REPORT.content({"fetch": found}, {"num_runs": 3}, began=datetime.now(UTC), measured_on={})
    written = json.dumps(document, allow_nan=False)
    assert (written.count('"met": false'), written.count('"met": true')) == (1, 1)
    assert "/a/path" not in written
    row = json.loads(written)["rows"]["fetch"]
    assert row["samples"]["seconds"] == {"ours": [2.2, 2.0, 3.6], "theirs": [2.0, 2.0, 3.0]}
    assert row["lines"][0]["target"] == {"sense": "≤", "value": 1.05}


def test_an_error_without_a_text_is_told_by_its_kind() -> None:
    assert first_line(TimeoutError()) == "TimeoutError"
    assert slug("2 × runai (S3)") == "2_runai_s3"


@pytest.mark.timeout(120)
async def test_bytes_of_a_whole_model_of_its_stages_and_of_its_index(setting: Setting, nothing_left: None) -> None:
    found = await measure_bytes(setting)
    shares = {line.key: line.found.value for line in found.lines if line.measure.name == "bytes_share"}
    # A guess of 128 KiB for each header weighs a few per cent in a model of 6 MiB.
    assert 1.0 < shares["bytes_share_whole_model"] < 1.06
    assert 0.5 < shares["bytes_share_first_stage"] < 0.55
    assert 0.5 < shares["bytes_share_last_stage"] < 0.55
    assert "HTTP headers are not counted" in printed({"bytes": found})


@pytest.mark.timeout(120)
async def test_a_killed_fetch_goes_on_and_leaves_nothing_over(
    setting: Setting, nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_kill, "FRACTIONS", (0.5,))
    monkeypatch.setattr(cache_kill, "_MIB_PER_SECOND", 10.0)
    found = await measure_kill(setting)
    for victim in Victim:
        (twice,), (left,) = found.samples.of(REFETCHED, victim), found.samples.of(STRAY, victim)
        assert left == 0
        assert twice < 0.9 * setting.model.weight_bytes


@pytest.mark.timeout(120)
async def test_a_swap_returns_with_part_of_the_model_and_keeps_to_its_budget(
    setting: Setting, nothing_left: None
) -> None:
    found = await measure_swap(setting)
    (first,), (again,) = found.samples.of(ORIGIN_BYTES, FIRST), found.samples.of(ORIGIN_BYTES, RETURN)
    assert again < 0.8 * first
    assert {line.key for line in found.lines if line.met is False} <= {"peak_share_of_budget_return"}


@pytest.mark.timeout(120)
async def test_a_fetch_is_read_back_by_every_protocol_and_again_from_the_store(
    setting: Setting, nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtests.cache_registry.ensure_docker_registry", lambda: None)
    monkeypatch.setattr(cache_fetching, "_READER", ("-m", "loadtests.cache_reader"))  # torch takes seconds
    found = await measure_fetching(setting)
    sides = {line.key.removeprefix("second_run_seconds_") for line in found.lines if line.measure is AGAIN}
    assert sides == {"http", "oci", "s3", "hf"}
    assert found.remarks == ["oci, docker-registry: not installed, and not to be had from apt"]


def test_starts_and_fetches_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    starts = Findings()
    for side, seconds in ((LOCAL, 22.0), (FAST, 23.0), (SLOW, 41.0), (HUB, 43.0)):
        starts.samples.add(FIRST_TOKEN, side, seconds)
        starts.samples.add(BOOT, side, 19.0)
    fetches = Findings()
    fetches.samples.add(SECONDS, "http", 5.5)
    both = {"first-token": starts, "fetch": fetches}
    assert cache_picture.can_draw(both)
    cache_picture.draw(both, tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert not cache_picture.can_draw({"swap": Findings()})


def test_lines_of_all_rows_fit_a_terminal_of_80_columns() -> None:
    found = Findings()
    for side in ("a", "b"):
        for _ in range(3):
            found.samples.add(RATIO, side, 1.234)
    found.worst("x" * 33, RATIO, "a", at_most(1.1))
    assert "…" not in printed({"readers": found})
