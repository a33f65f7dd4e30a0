"""headrace_server.bench.document, report, findings and picture: what a reader gets."""

import json
import platform
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from headrace_server.bench import document, machine
from headrace_server.bench.arrivals import ClosedLoop, Load, Poisson, Replay
from headrace_server.bench.findings import Findings, Setting
from headrace_server.bench.measures import MEASURES, Better
from headrace_server.bench.picture import Bar, Distribution, check_can_draw, draw
from headrace_server.bench.record import Record
from headrace_server.bench.side import Asking
from headrace_server.bench.stats import Sense, Target, estimate
from headrace_server.bench.summary import BlockResult, ClientCost, Latencies, Slo, Tally
from headrace_server.bench.trace import TraceRow
from headrace_server.errors import UsageError


def block(value: float) -> BlockResult:
    latencies = Latencies([value] * 9, [value / 10] * 2000, [value / 10] * 9, [value * 10] * 9)
    figures = {measure: value / measure.scale for measure in MEASURES}
    return BlockResult(figures, latencies, Tally(9, 9), ClientCost(0.1, 1.0, 100, 0.0), num_tokens=100)


def recorded(*blocks: tuple[float, float]) -> Record:
    record = Record()
    for ours, theirs in blocks:
        record.add("ours", block(ours))
        record.add("theirs", block(theirs))
    return record


def findings(record: Record, *names: str, load: Load | None = None) -> Findings:
    setting = Setting(
        names=names or ("ours", "theirs"),
        asking=Asking(model="/home/me/models/smol", api_key="secret"),
        load=load or Load(ClosedLoop(16), 32, seed=5),
        num_blocks=2,
        slo=Slo(),
        paused=True,
        cpu_source="process clock",
    )
    return Findings(setting, record, datetime(2026, 1, 1, tzinfo=UTC), machine.machine())


def printed(found: Findings, width: int = 80) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(found.table())
    return capture.get().splitlines()


def line(lines: list[str], title: str) -> list[str]:
    (found,) = (text for text in lines if text.startswith(title))
    return found.removeprefix(title).split()


def test_a_comparison_shows_medians_and_the_paired_ratio_with_its_interval() -> None:
    lines = printed(findings(recorded((10.0, 5.0), (30.0, 10.0), (8.0, 4.0))))
    assert line(lines, "throughput (tokens/s)") == ["10.0", "5.0", "2.000", "2.00–3.00", "3"]
    assert lines[0].strip() == "smol: 16 streams, 128 tokens each"


def test_one_server_alone_has_medians_and_their_range() -> None:
    record = Record()
    for value in (1.0, 3.0, 2.0):
        record.add("ours", block(value))
    assert line(printed(findings(record, "ours")), "TTFT p50 (ms)") == ["2.00", "1.00–3.00", "3"]


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    lines = printed(findings(recorded((12345.6, 12345.6), (2345.6, 9999.9))))
    assert len(lines) > len(MEASURES)
    assert not any("…" in text for text in lines)


def test_refusals_failures_and_a_client_at_its_limit_are_told() -> None:
    record = recorded((1.0, 1.0))
    record.tallies["ours"].extend(Tally(num_sent=3, num_failed=1))
    record.tallies["ours"].refused.update({429: 2})
    record.tallies["ours"].reasons.update({"429: busy": 2, "cut off": 1})
    record.clients.append(ClientCost(0.9, 1.0, 100, 0.0))
    notes = list(findings(record).notes())
    assert notes[:3] == [
        "ours: 12 sent = 9 complete + 2 refused (2 × 429) + 1 failed",
        "  2 × 429: busy",
        "  1 × cut off",
    ]
    assert "GENERATOR-BOUND" in notes[3]
    assert "90% of a core" in notes[3]


def test_nothing_is_told_of_a_client_that_had_time() -> None:
    notes = list(findings(recorded((1.0, 1.0))).notes())
    assert notes[0].startswith("this client: 1000.0 µs CPU/token, at most 10% of a core; priority: ordinary")
    assert notes[1:] == ["server CPU from the kernel's process clock", "seed 5"]


def test_the_document_says_what_the_table_says() -> None:
    content = findings(recorded((10.0, 5.0), (30.0, 10.0))).as_document()
    comparisons = content["comparisons"]
    assert isinstance(comparisons, dict)
    assert comparisons["output_tokens_per_second"] == {
        "ours": 20.0,
        "theirs": 7.5,
        "ratio": {"median": 2.5, "confidence_95": [2.0, 3.0], "range": [2.0, 3.0], "num_pairs": 2},
    }
    assert content["requests"] == {
        side: {"sent": 18, "complete": 18, "refused": {}, "failed": 0} for side in ("ours", "theirs")
    }
    assert content["format"] == 2


def test_a_document_holds_no_path_key_or_address_and_stays_small(tmp_path: Path) -> None:
    found = findings(recorded(*[(1.0 + n / 7, 1.0 + n / 3) for n in range(40)]))
    path = tmp_path / "found.json"
    document.save(found.as_document(), path)
    text = path.read_text()
    assert json.loads(text) == json.loads(json.dumps(found.as_document()))
    assert len(text) < 200 * 1024
    assert "secret" not in text
    assert "/home" not in text
    assert not any(line.strip().rstrip(",").replace(".", "").isdigit() for line in text.splitlines())


@pytest.mark.parametrize(
    ("load", "arrivals"),
    [
        (Load(ClosedLoop(1), 1), "1 stream"),
        (Load(Poisson(2.5), 1), "Poisson arrivals, 2.5/s"),
        (Load(Replay((TraceRow(0.0, 1, 1),), 2.0), 1), "a trace at 2 × its speed"),
    ],
)
def test_a_document_says_how_requests_arrived(load: Load, arrivals: str) -> None:
    arguments = findings(recorded((1.0, 1.0)), load=load).as_document()["arguments"]
    assert isinstance(arguments, dict)
    assert arguments["arrivals"] == arrivals


def test_a_file_that_cannot_be_made_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent" / "file.json"):
        with pytest.raises(UsageError, match="--json: no file can be made"):
            document.check_can_be_written(path, "--json")
    document.check_can_be_written(tmp_path / "new.json", "--json")


def test_a_file_that_cannot_be_written_after_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: Is a directory"):
        document.save({}, tmp_path)


def test_the_machine_is_described_without_its_name() -> None:
    found = json.dumps({**machine.machine(), **machine.versions()})
    assert platform.node() not in found
    assert '"cores": ' in found


def test_the_commit_is_that_of_this_checkout(repository: Path) -> None:
    found = machine.commit()
    if not (repository / ".git").exists():
        pytest.skip("not a checkout")
    assert found is not None
    assert len(found.removesuffix("-dirty")) == 40


def test_a_picture_needs_a_suffix_and_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"neither in \.png nor in \.svg"):
        check_can_draw(tmp_path / "a.pdf")
    monkeypatch.setattr("headrace_server.bench.picture.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="needs matplotlib"):
        check_can_draw(tmp_path / "a.png")


@pytest.mark.parametrize(("suffix", "beginning"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_pictures_are_drawn_of_comparisons_and_of_one_server(tmp_path: Path, suffix: str, beginning: bytes) -> None:
    pytest.importorskip("matplotlib")
    for names in (("ours", "theirs"), ("ours",)):
        path = tmp_path / f"{len(names)}{suffix}"
        findings(recorded((10.0, 5.0), (30.0, 10.0)), *names).draw(path)
        assert path.read_bytes().startswith(beginning)


def test_a_picture_of_far_ratios_targets_and_single_pairs_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bars = [
        Bar("far", estimate([30.0, 40.0], seed=0), Better.HIGHER, Target(Sense.AT_LEAST, 1.5)),
        Bar("near", estimate([0.02], seed=0), Better.LOWER),
    ]
    draw(tmp_path / "a.png", title="t", bars=bars, distributions=[])
    draw(tmp_path / "b.png", title="t", bars=[], distributions=[Distribution("d", {"a": [0.0] * 101})])
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_a_ratio_of_zero_has_no_place_on_a_logarithmic_axis_and_is_left_out(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bars = [Bar(name, estimate(pairs, seed=0), Better.LOWER) for name, pairs in (("zero", [0.0, 1.0]), ("one", [1.0]))]
    for path, drawn in ((tmp_path / "both.svg", bars), (tmp_path / "one.svg", bars[1:])):
        draw(path, title="t", bars=drawn, distributions=[])
    both, one = ((tmp_path / f"{name}.svg").read_text() for name in ("both", "one"))
    assert both.count("<path") == one.count("<path")


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match="cannot be written"):
        draw(tmp_path / "absent" / "a.png", title="t", bars=[], distributions=[])


def test_a_title_tells_the_load() -> None:
    unary = replace(Load(ClosedLoop(1), 5, num_tokens=8), stream=False)
    assert (
        printed(findings(recorded((1.0, 1.0)), load=unary))[0].strip() == "smol: 1 stream, 8 tokens each, not streamed"
    )
