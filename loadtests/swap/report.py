"""The findings of `bench-swap` as a table and as a document."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from headrace_server.bench import document
from headrace_server.bench.report import empty_table
from headrace_server.bench.stats import Estimate, Target
from loadtests.swap.findings import Findings, Line

AllFindings = Mapping[str, Findings]

_CAPTION = "ratio: median of the pairs, or the worst; what theirs is: loadtests/README.md"
_RATIO_DIGITS = 3


def table(found: AllFindings) -> Table:
    """One line a figure, under the row that it belongs to."""
    shown = empty_table("engine pool", _CAPTION, ("ours", "theirs", "ratio", "range", "runs", "target"))
    shown.columns[0].header = ""
    for name, findings in found.items():
        shown.add_row(f"[bold]{name}[/]")
        for line in findings.lines:
            shown.add_row(f" {line.title}", *_cells(line))
    return shown


def _cells(line: Line) -> Iterator[str]:
    yield f"{line.measure.shown(line.ours)} {line.measure.unit}".strip()
    yield "" if line.theirs is None else line.measure.shown(line.theirs)
    yield "" if line.theirs is None else _shown(line, line.found.value)
    yield _range(line)
    yield str(line.found.num_pairs)
    yield "" if line.target is None else _verdict(line, line.target)


def _shown(line: Line, value: float) -> str:
    """What the target is about: a ratio, or a figure in its own unit."""
    return line.measure.shown(value) if line.theirs is None else f"{value:.{_RATIO_DIGITS}f}"


def _range(line: Line) -> str:
    found: Estimate = line.found
    if found.num_pairs == 1:
        return ""
    return f"{_shown(line, found.range.low)}–{_shown(line, found.range.high)}"


def _verdict(line: Line, target: Target) -> str:
    met = line.met
    wanted = _shown(line, target.value)
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
        **document.heading("make bench-swap", began=began, measured_on=measured_on),
        **options,
        "rows": {name: findings.as_document() for name, findings in found.items()},
    }


def path_in(folder: Path) -> Path:
    """Where the document of this run goes."""
    return folder / f"bench-swap-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
