"""The limits as tables and as a document: what was measured, what it should be, and whether it is."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from headrace_server.bench import document, measures
from headrace_server.bench.measures import Measure
from headrace_server.bench.report import account, confidence_text, empty_table, notes
from headrace_server.bench.stats import Estimate, Interval, Sense, Target, median
from loadtests.crowd import ALONE, CROWDED, CrowdFindings
from loadtests.soak import SoakFindings
from loadtests.stalled_client import StalledFindings

SEED = 21
STALLED_CLIENT_SECONDS = 2

_KIB, _MIB = 2**10, 2**20
_CROWD_MEASURES = (measures.TTFT_P50, measures.ITL_P50, measures.ITL_P99, measures.TPOT_P50)
_CROWD_TARGETS: Mapping[Measure, Target] = {measures.ITL_P99: Target(Sense.AT_MOST, 1.10)}


@dataclass(slots=True)
class Limits:
    """What was measured so far; a part that was not is None."""

    crowd: CrowdFindings | None = None
    stalled: StalledFindings | None = None
    soak: SoakFindings | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """One figure that has a bound, or none; `key` names it, with its unit, in the document."""

    key: str
    title: str
    value: float
    shown: str
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """None: there is no target."""
        return None if self.target is None else self.target.met_by(exactly(self.value))


def exactly(value: float) -> Estimate:
    """A figure that there is only one of."""
    return Estimate(value, None, Interval(value, value), 1)


def _at_most(value: float) -> Target:
    return Target(Sense.AT_MOST, value)


def crowd_ratios(findings: CrowdFindings) -> Iterator[tuple[Measure, Estimate]]:
    """In a crowd / alone: the median of the pairs of blocks."""
    ratios = findings.record.samples.ratios(CROWDED, ALONE, seed=SEED)
    return ((measure, ratios[measure]) for measure in _CROWD_MEASURES if measure in ratios)


def stalled_limits(findings: StalledFindings) -> Iterator[Limit]:
    """Of the client that never reads."""
    ended, tally = findings.ended_after_seconds, findings.others.tally
    seconds = float("inf") if ended is None else ended
    shown = "not ended" if ended is None else f"{ended:.1f} s"
    # The setting, the kernel's probes in growing gaps until it notices, and /metrics, which is half a second old.
    yield Limit("ended_after_seconds", "its request ended after", seconds, shown, _at_most(STALLED_CLIENT_SECONDS + 2))
    memory = findings.memory_bytes
    yield Limit("memory_bytes", "it cost the server, at most", memory, f"{memory / _KIB:,.0f} KiB", _at_most(_MIB))
    made = findings.num_tokens_made
    yield Limit("num_tokens_made", "tokens made for it", made, f"{made:,}")
    lost = tally.num_sent - tally.num_complete
    yield Limit("others_incomplete", "others that were not completed", lost, f"{lost} of {tally.num_sent}", _at_most(0))
    p99 = findings.others.figures.get(measures.ITL_P99, float("inf"))
    yield Limit("others_itl_p99_seconds", "ITL p99 of the others", p99, f"{p99 * 1e3:.1f} ms")
    longest = max(findings.others.latencies.itl, default=float("inf"))
    yield Limit("others_longest_itl_seconds", "longest gap in any of them", longest, f"{longest * 1e3:.0f} ms")


def soak_limits(findings: SoakFindings) -> Iterator[Limit]:
    """Of the soak."""
    growth = findings.growth_per_request / _KIB
    title = "memory left by a request"
    yield Limit("growth_kib_per_request", title, growth, f"{growth:.3f} KiB", _at_most(0.5))
    last = findings.growth_by_lap[-1] / _KIB
    yield Limit("growth_kib_per_request_last_lap", "the same, last quarter", last, f"{last:.3f} KiB")
    for key, title, count in (
        ("num_unaccounted", "sent, not complete, refused or aborted", findings.account.num_unaccounted),
        ("num_never_ended", "sent, not ended in the server's count", abs(findings.num_never_ended)),
        ("num_left", "still in the engine at the end", findings.num_left),
    ):
        yield Limit(key, title, count, str(count), _at_most(0))


def tables(limits: Limits) -> Iterator[Table]:
    """One for the crowd, one for everything else."""
    if limits.crowd is not None and limits.crowd.record.tallies:
        yield _crowd_table(limits.crowd)
    parts = {
        "client that never reads": stalled_limits(limits.stalled) if limits.stalled else (),
        "soak": soak_limits(limits.soak) if limits.soak else (),
    }
    shown = empty_table("limits", "what the rows mean: loadtests/README.md", ("found", "target"))
    shown.columns[0].header = ""
    for part, rows in parts.items():
        for nth, row in enumerate(rows):
            if nth == 0:
                shown.add_row(f"[bold]{part}[/]")
            shown.add_row(f" {row.title}", row.shown, _verdict(row.target, row.met, row.key))
    if shown.row_count:
        yield shown


def _crowd_table(findings: CrowdFindings) -> Table:
    size = findings.size
    title = f"16 streams beside {size.num_idle:,} idle connections and {size.num_slow} slow readers"
    caption = "ratio: median of the pairs of blocks, with its 95 % interval"
    shown = empty_table(title, caption, (ALONE, CROWDED, "ratio", "95 % CI", "target"))
    samples = findings.record.samples
    for measure, ratio in crowd_ratios(findings):
        medians = (measure.shown(median(samples.of(measure, side))) for side in (ALONE, CROWDED))
        target = _CROWD_TARGETS.get(measure)
        verdict = "" if target is None else _verdict(target, target.met_by(ratio), measure.name)
        shown.add_row(measure.heading, *medians, f"{ratio.value:.3f}", confidence_text(ratio), verdict)
    return shown


_SHOWN_TARGETS = {"memory_bytes": "1 MiB", "ended_after_seconds": f"{STALLED_CLIENT_SECONDS + 2} s"}


def _verdict(target: Target | None, met: bool | None, key: str) -> str:
    if target is None:
        return ""
    wanted = _SHOWN_TARGETS.get(key, f"{target.value:.2f}" if target.value % 1 else f"{target.value:g}")
    return f"[{'green' if met else 'red'}]{target.sense} {wanted} {'met' if met else 'missed'}[/]"


def remarks(limits: Limits) -> Iterator[str]:
    """What else one must know."""
    if limits.crowd is not None:
        yield from _crowd_remarks(limits.crowd)
    if limits.stalled is not None and limits.stalled.others.tally.num_complete < limits.stalled.others.tally.num_sent:
        yield f"beside the client that never reads: {account(limits.stalled.others.tally)}"
    if limits.soak is not None:
        yield from _soak_remarks(limits.soak)


def _crowd_remarks(findings: CrowdFindings) -> Iterator[str]:
    yield from notes(findings.record)
    least, size = findings.least, findings.size
    if (least.num_idle, least.num_slow) != (size.num_idle, size.num_slow):
        yield f"the smallest crowd at the end of a block: {least.num_idle} idle, {least.num_slow} slow readers"
    memory = findings.record.samples.pairs(measures.SERVER_ANON_RSS, ALONE, CROWDED)
    if memory[0]:
        before, most = memory[0][0] / _MIB, max(memory[1]) / _MIB
        yield f"server RssAnon: {before:.0f} MiB before the crowd, at most {most:.0f} MiB in it"
    if findings.num_unfilled:
        yield f"in {findings.num_unfilled} blocks the slow readers still got tokens as fast as others"


def _soak_remarks(findings: SoakFindings) -> Iterator[str]:
    counted = findings.account
    refused = ", ".join(f"{count:,} × {status}" for status, count in sorted(counted.refused.items()))
    yield (
        f"soak: {counted.num_sent:,} sent = {counted.num_complete:,} complete + {counted.refused.total():,} refused"
        f" ({refused}) + {counted.num_aborted:,} aborted + {counted.num_unaccounted} others; the server counted "
        + ", ".join(f"{count:,} × {status}" for status, count in findings.ended.items())
    )
    laps = ", ".join(f"{growth / _KIB:.3f}" for growth in findings.growth_by_lap)
    yield f"soak: KiB left by a request, quarter by quarter: {laps}"
    for reason, count in counted.unexpected.most_common(3):
        yield f"  {count} × {reason}"


def content(
    limits: Limits, arguments: Mapping[str, object], *, began: datetime, measured_on: Mapping[str, object]
) -> dict[str, object]:
    """Everything, for JSON."""
    found: dict[str, object] = {
        **document.heading("make bench-limits", began=began, measured_on=measured_on),
        "arguments": dict(arguments),
    }
    if limits.crowd is not None:
        found["crowd"] = _crowd_document(limits.crowd)
    if limits.stalled is not None:
        found["stalled_client"] = {
            "rows": [_limit_document(row) for row in stalled_limits(limits.stalled)],
            "stalled_client_seconds": STALLED_CLIENT_SECONDS,
        }
    if limits.soak is not None:
        found["soak"] = _soak_document(limits.soak)
    return found


def _crowd_document(findings: CrowdFindings) -> dict[str, object]:
    rows = []
    for measure, ratio in crowd_ratios(findings):
        row: dict[str, object] = {"measure": measure.name, "ratio": document.estimate_document(ratio)}
        if (target := _CROWD_TARGETS.get(measure)) is not None:
            row |= {"target": f"{target.sense} {target.value}", "met": target.met_by(ratio)}
        rows.append(row)
    return {
        "rows": rows,
        "size": asdict(findings.size),
        "standing_after_blocks": [asdict(standing) for standing in findings.standings],
        "num_blocks_with_unfilled_buffers": findings.num_unfilled,
        **document.measured(findings.record),
    }


def _soak_document(findings: SoakFindings) -> dict[str, object]:
    counted = findings.account
    return {
        "rows": [_limit_document(row) for row in soak_limits(findings)],
        "lap_requests": findings.lap_requests,
        "private_memory_bytes_after_warm_up_and_each_lap": list(findings.memory_bytes),
        "requests": {
            "sent": counted.num_sent,
            "complete": counted.num_complete,
            "refused": {str(status): count for status, count in sorted(counted.refused.items())},
            "aborted": counted.num_aborted,
            "unexpected": dict(counted.unexpected),
        },
        "ended_by_status": dict(findings.ended),
    }


def _limit_document(limit: Limit) -> dict[str, object]:
    value = limit.value if limit.value != float("inf") else None
    found: dict[str, object] = {"row": limit.key, "found": value}
    if limit.target is not None:
        found |= {"target": f"{limit.target.sense} {limit.target.value}", "met": limit.met}
    return found


def path_in(folder: Path) -> Path:
    """Where the document goes."""
    return folder / f"bench-limits-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
