"""The findings of `bench-cache` as a table, as a document and as a picture."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from headrace_server.bench import document
from headrace_server.bench.report import empty_table
from headrace_server.bench.stats import Estimate, Target
from loadtests.cache_findings import Findings, Line

AllFindings = Mapping[str, Findings]

_CAPTION = "seen: median of the runs (ratios: of their pairs), or the worst of them; rows: loadtests/README.md"


def table(found: AllFindings) -> Table:
    """One line a figure, under the row that it belongs to."""
    shown = empty_table("model cache", _CAPTION, ("seen", "range", "runs", "target"))
    shown.columns[0].header = ""
    for name, findings in found.items():
        shown.add_row(f"[bold]{name}[/]")
        for line in findings.lines:
            shown.add_row(f" {line.title}", *_cells(line))
    return shown


def _cells(line: Line) -> Iterator[str]:
    yield line.shown(line.found.value)
    yield _range(line)
    yield str(line.found.num_pairs)
    yield "" if line.target is None else _verdict(line, line.target)


def _range(line: Line) -> str:
    found: Estimate = line.found
    if found.num_pairs == 1:
        return ""
    return f"{line.measure.shown(found.range.low)}–{line.measure.shown(found.range.high)}"


def _verdict(line: Line, target: Target) -> str:
    met = line.met
    wanted = line.measure.shown(target.value)
    return f"[{'green' if met else 'red'}]{target.sense} {wanted} {'met' if met else 'missed'}[/]"


def remarks(found: AllFindings) -> Iterator[str]:
    """What else one must know, by row."""
    for name, findings in found.items():
        for remark in findings.remarks:
            yield f"{name}: {remark}"


def content(
    found: AllFindings, options: Mapping[str, object], *, began: datetime, measured_on: Mapping[str, object]
) -> dict[str, object]:
    """Everything, for JSON."""
    return {
        **document.heading("make bench-cache", began=began, measured_on=measured_on),
        **options,
        "rows": {name: findings.as_document() for name, findings in found.items()},
    }


def path_in(folder: Path) -> Path:
    """Where the document of this run goes; the picture lies beside it."""
    return folder / f"bench-cache-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
