"""loadtests.bench_limits and its parts: what they decide, and that they measure a real server and end it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from headrace_server.bench import measures
from headrace_server.bench.outcomes import Complete, Failed, Refused
from headrace_server.bench.process_table import ProcessId, descendants, living_processes
from headrace_server.bench.record import Record
from headrace_server.bench.summary import BlockResult, Latencies, Tally
from headrace_server.errors import UsageError
from loadtests.bench_limits import Options, Part, measure_and_report, parse_options
from loadtests.crowd import ALONE, CROWDED, CrowdFindings, Size, Standing
from loadtests.limits_report import Limit, Limits, content, remarks, soak_limits, stalled_limits, tables
from loadtests.limits_server import enough_open_files, parse_counts, parse_private_bytes, serving
from loadtests.soak import Account, Kind, SoakFindings, kind_of
from loadtests.stalled_client import FLOOD_MODEL, StalledFindings, measure_stalled_client

KIB, MIB = 1024, 1024**2
COMPLETE = Complete(began_at=0.0, late_seconds=0.0, text_stamps=(1.0,), ended_at=1.0, num_tokens=16)

METRICS = """\
# TYPE headrace_requests counter
headrace_requests_total{route="/v1/chat/completions",status="200"} 7.0
headrace_requests_total{route="/v1/chat/completions",status="499"} 2.0
headrace_requests_total{route="/livez",status="200"} 2000.0
# TYPE headrace_engine_requests_running gauge
headrace_engine_requests_running{model="bench"} 3.0
# TYPE headrace_engine_requests_waiting gauge
headrace_engine_requests_waiting{model="bench"} 4.0
# TYPE headrace_engine_generation_tokens counter
headrace_engine_generation_tokens_total{model="bench"} 1.28e+06
"""


def test_counts_are_of_chat_completions_and_of_what_runs_or_waits() -> None:
    counts = parse_counts(METRICS)
    assert counts.in_engine == {"bench": 7}
    assert counts.tokens_made == {"bench": 1_280_000}
    assert counts.ended == {"200": 7, "499": 2}


def test_private_memory_counts_what_was_swapped_out() -> None:
    assert parse_private_bytes("Name:\tx\nRssAnon:\t 100 kB\nRssFile:\t 9 kB\nVmSwap:\t 28 kB\n") == 128 * KIB
    assert parse_private_bytes("Name:\tkthreadd\n") == 0


def test_the_mixture_has_every_kind_in_its_share() -> None:
    shares = Counter(kind_of(number) for number in range(20_000))
    assert shares == {
        Kind.STREAM: 15_000,
        Kind.UNARY: 2_000,
        Kind.LEAVES: 1_000,
        Kind.INVALID: 1_000,
        Kind.UNKNOWN_MODEL: 1_000,
    }


def test_every_expected_outcome_is_accounted_for() -> None:
    account = Account(num_sent=4, num_aborted=1)
    account.enter(Kind.STREAM, COMPLETE)
    account.enter(Kind.INVALID, Refused(400, "no"))
    account.enter(Kind.UNKNOWN_MODEL, Refused(404, "no"))
    assert (account.num_complete, account.refused, account.num_unaccounted) == (1, {400: 1, 404: 1}, 0)
    assert not account.unexpected


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (Kind.STREAM, Failed("cut off")),
        (Kind.UNARY, Refused(400, "no")),
        (Kind.STREAM, Refused(503, "full")),
        (Kind.INVALID, Refused(404, "no")),
        (Kind.INVALID, COMPLETE),
        (Kind.UNKNOWN_MODEL, COMPLETE),
    ],
)
def test_what_should_not_have_happened_stays_unaccounted(kind: Kind, outcome: Complete | Refused | Failed) -> None:
    account = Account(num_sent=1)
    account.enter(kind, outcome)
    assert account.num_unaccounted == account.unexpected.total() == 1


def soak_findings(*memory: int, ended: int = 22_000, left: int = 0, unexpected: int = 0) -> SoakFindings:
    account = Account(num_sent=22_000, num_complete=18_700 - unexpected, num_aborted=1_100)
    account.refused.update({400: 1_100, 404: 1_100})
    account.unexpected["STREAM: cut off"] += unexpected
    return SoakFindings(5_000, memory or (MIB,) * 5, account, {"200": ended}, left)


def verdicts(rows: dict[str, Limit]) -> dict[str, bool]:
    return {key: row.met for key, row in rows.items() if row.met is not None}


def by_key(findings: SoakFindings | StalledFindings) -> dict[str, Limit]:
    rows = soak_limits(findings) if isinstance(findings, SoakFindings) else stalled_limits(findings)
    return {row.key: row for row in rows}


def test_growth_is_bytes_per_request_after_the_warm_up() -> None:
    findings = soak_findings(MIB, 6 * MIB, 7 * MIB, 7 * MIB, 7 * MIB)
    assert findings.growth_per_request == pytest.approx(6 * MIB / 20_000)
    assert findings.growth_by_lap == pytest.approx((5 * MIB / 5000, MIB / 5000, 0, 0))


@pytest.mark.parametrize(("grown", "met"), [(10_000 * KIB, True), (10_100 * KIB, False), (-MIB, True)])
def test_a_request_may_leave_half_a_kibibyte(grown: int, met: bool) -> None:
    findings = soak_findings(MIB, MIB, MIB, MIB, MIB + grown)
    assert by_key(findings)["growth_kib_per_request"].met is met


@pytest.mark.parametrize(
    ("findings", "missed"),
    [
        (soak_findings(), set[str]()),
        (soak_findings(left=1), {"num_left"}),
        (soak_findings(ended=21_999), {"num_never_ended"}),
        (soak_findings(ended=22_001), {"num_never_ended"}),
        (soak_findings(unexpected=1), {"num_unaccounted"}),
    ],
)
def test_a_single_request_that_is_lost_or_left_misses_a_target(findings: SoakFindings, missed: set[str]) -> None:
    assert {key for key, met in verdicts(by_key(findings)).items() if not met} == missed


def block(itl_p99: float = 0.01, *, incomplete: int = 0) -> BlockResult:
    figures = {measures.ITL_P99: itl_p99, measures.ITL_P50: 0.01, measures.SERVER_ANON_RSS: 50.0 * MIB}
    tally = Tally(96, 96 - incomplete, incomplete)
    return BlockResult(figures, Latencies(itl=[0.01, itl_p99]), tally, client=None, num_tokens=128)


def stalled_findings(ended: float | None = 2.5, *, memory: int = 300 * KIB, incomplete: int = 0) -> StalledFindings:
    return StalledFindings(ended, memory, 904, block(incomplete=incomplete))


@pytest.mark.parametrize(
    ("findings", "missed"),
    [
        (stalled_findings(), set[str]()),
        (stalled_findings(4.1), {"ended_after_seconds"}),
        (stalled_findings(None), {"ended_after_seconds"}),
        (stalled_findings(memory=MIB + 1), {"memory_bytes"}),
        (stalled_findings(incomplete=1), {"others_incomplete"}),
    ],
)
def test_a_client_that_never_reads_is_ended_cheaply_and_alone(findings: StalledFindings, missed: set[str]) -> None:
    assert {key for key, met in verdicts(by_key(findings)).items() if not met} == missed


def crowd_findings(crowded: float, *standings: Standing) -> CrowdFindings:
    record = Record()
    for factor in (1.0, 1.1, 0.9):
        record.add(ALONE, block(0.010 * factor))
        record.add(CROWDED, block(crowded * factor))
    return CrowdFindings(Size(), record, standings or (Standing(2000, 200),), num_unfilled=0)


def printed(limits: Limits) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        for table in tables(limits):
            console.print(table)
        for remark in remarks(limits):
            console.print(remark, soft_wrap=True, markup=False)
    return capture.get()


@pytest.mark.parametrize(("crowded", "verdict"), [(0.0109, "≤ 1.10 met"), (0.0112, "≤ 1.10 missed")])
def test_a_crowd_may_cost_the_others_a_tenth_of_their_itl_p99(crowded: float, verdict: str) -> None:
    text = printed(Limits(crowd=crowd_findings(crowded)))
    assert verdict in text
    assert "smallest crowd" not in text


def test_a_crowd_that_melted_away_is_told() -> None:
    text = printed(Limits(crowd=crowd_findings(0.01, Standing(2000, 200), Standing(1999, 200))))
    assert "the smallest crowd at the end of a block: 1999 idle, 200 slow readers" in text


def test_the_tables_fit_a_terminal_of_80_columns_and_the_file_says_the_same() -> None:
    limits = Limits(crowd_findings(0.0112), stalled_findings(None), soak_findings(ended=21_999))
    text = printed(limits)
    assert "…" not in text
    assert text.count("missed") == 3
    document = content(limits, Options(tuple(Part), Path()).as_document(), began=datetime.now(UTC), measured_on={})
    written = json.dumps(document, allow_nan=False)
    assert written.count('"met": false') == 3
    assert written.count('"met": true') == text.count(" met")


def test_what_was_not_measured_is_not_shown() -> None:
    assert printed(Limits()) == ""


def test_too_low_a_limit_of_open_files_is_a_usage_error_and_a_soft_one_is_raised_for_a_while() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("no limit on this machine")
    with pytest.raises(UsageError, match="open files"), enough_open_files(hard + 1):
        pass
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard - 1), hard))
    try:
        with enough_open_files(hard):
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(soft, hard - 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_all_parts_are_measured_in_their_order_unless_some_are_named() -> None:
    assert parse_options([]).parts == tuple(Part)
    assert parse_options(["--part", "soak", "--part", "crowd"]).parts == (Part.CROWD, Part.SOAK)


@pytest.mark.parametrize("arguments", [["--blocks", "0"], ["--requests", "x"], ["--part", "everything"]])
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2


@pytest.mark.timeout(120)
async def test_a_short_run_measures_a_real_server(tmp_path: Path) -> None:
    size = Size(num_idle=20, num_slow=2, fill_seconds=1.0)
    parts = (Part.CROWD, Part.SOAK)
    await measure_and_report(Options(parts, tmp_path, size, num_blocks=1, num_requests=200, num_warm_up=40))
    found = _only_document(tmp_path)
    assert found["crowd"]["standing_after_blocks"] == [{"num_idle": 20, "num_slow": 2}]
    assert found["crowd"]["requests"] == {
        side: {"sent": 16, "complete": 16, "refused": {}, "failed": 0} for side in (ALONE, CROWDED)
    }
    soaked = found["soak"]
    assert soaked["requests"] == {
        "sent": 240,
        "complete": 204,
        "refused": {"400": 12, "404": 12},
        "aborted": 12,
        "unexpected": {},
    }
    assert soaked["ended_by_status"] == {"200": 204, "400": 12, "404": 12, "499": 12}
    assert len(soaked["private_memory_bytes_after_warm_up_and_each_lap"]) == 5
    assert [row["met"] for row in soaked["rows"] if row["row"].startswith("num_")] == [True] * 3


def _only_document(folder: Path) -> Any:
    (path,) = folder.iterdir()
    return json.loads(path.read_text())


@pytest.mark.timeout(120)
async def test_a_client_that_never_reads_is_seen_to_end(tmp_path: Path) -> None:
    async with serving(tmp_path, itl_ms=1, other_models={FLOOD_MODEL: 0.0}, stalled_client_seconds=1) as server:
        findings = await measure_stalled_client(server, num_rounds=3, most_seconds=30)
    assert findings.ended_after_seconds is not None
    assert findings.ended_after_seconds > 1
    assert 100 < findings.num_tokens_made < 4000
    assert findings.others.tally.num_complete == findings.others.tally.num_sent == 48


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_nothing_outlives_the_program_however_it_ends(
    repository: Path, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    line = [sys.executable, "loadtests/bench_limits.py", "--part", "crowd", "--results", str(tmp_path)]
    with subprocess.Popen(
        line,
        cwd=repository,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as program:
        try:
            started = _once_all_are_there(ProcessId(program.pid))
            program.send_signal(number)
            assert program.wait(60) == exit_code
        finally:
            program.kill()
    deadline = time.monotonic() + 20
    while (left := started & living_processes().keys()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def _once_all_are_there(pid: ProcessId) -> set[ProcessId]:
    """The program's descendants, once the server and the crowd are among them."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = descendants(pid, living_processes()) - {pid}
        lines = [_command_line(each) for each in found]
        if any("serve" in line for line in lines) and any("crowd_process" in line for line in lines):
            return found
        time.sleep(0.05)
    raise AssertionError("the server and the crowd were not started")


def _command_line(pid: ProcessId) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
