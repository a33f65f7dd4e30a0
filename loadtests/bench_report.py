"""A comparison as a table, a picture and a JSON file."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from headrace_server.bench import document
from headrace_server.bench.arrivals import ClosedLoop
from headrace_server.bench.findings import arrivals_text
from headrace_server.bench.measures import Samples
from headrace_server.bench.picture import Bar, Distribution, draw
from headrace_server.bench.record import Record
from headrace_server.bench.report import confidence_text, empty_table, notes
from loadtests.launcher import Subject
from loadtests.programmes import START, Programme
from loadtests.rows import Kind, Row, rows_of

RESULTS = Path(__file__).resolve().with_name("results")

_DRAWN_LOAD = "16 streams"


@dataclass(slots=True)
class Results:
    """What was measured of one subject: a record for each load, and the times of the starts."""

    programme: Programme
    records: dict[str, Record] = field(default_factory=dict)
    starts: Samples = field(default_factory=Samples)

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Every row that there are samples for, with the load that it belongs to."""
        for label, plans in self.programme.rows.items():
            samples = self.starts if label == START else self.records.get(label, Record()).samples
            for row in rows_of(samples, plans):
                yield label, row


def table(results: Results) -> Table:
    """One line a row, under the load that it belongs to."""
    caption = "ratio: median of the pairs, with its 95 % interval. What the rows mean: loadtests/README.md"
    shown = empty_table(results.programme.title, caption, ("Headrace", "other", "ratio", "95 % CI", "target"))
    last = ""
    for label, row in results.rows():
        if label != last:
            shown.add_row(f"[bold]{label}[/]")
            last = label
        shown.add_row(f" {row.title}", *_cells(row))
    return shown


def _cells(row: Row) -> Iterator[str]:
    measure = row.plan.measure
    yield measure.shown(row.ours)
    yield measure.shown(row.theirs)
    is_ratio = row.plan.kind is not Kind.ADDED
    yield f"{row.found.value:.3f}" if is_ratio else ""
    yield confidence_text(row.found) if is_ratio else _scaled_interval(row)
    colour = "red" if "missed" in row.verdict else "green"
    yield f"[{colour}]{row.verdict}[/]" if row.verdict else ""


def _scaled_interval(row: Row) -> str:
    confidence, shown = row.found.confidence, row.plan.measure.shown
    return f"{shown(confidence.low)}–{shown(confidence.high)}" if confidence else ""


def remarks(results: Results) -> Iterator[str]:
    """What else one must know, by load."""
    for label, record in results.records.items():
        for note in notes(record):
            yield f"{label}: {note}"


def picture(results: Results, path: Path) -> None:
    """Every ratio with its target, and the latencies at 16 streams."""
    bars = [
        Bar(row.title.partition(" (")[0], row.found, row.plan.measure.better, row.plan.target, label)
        for label, row in results.rows()
        if row.plan.kind is not Kind.ADDED
    ]
    draw(
        path,
        title=f"{results.programme.title}: Headrace / vLLM",
        bars=bars,
        distributions=list(_distributions(results)),
    )


def _distributions(results: Results) -> Iterator[Distribution]:
    for label, name, title in (
        (_DRAWN_LOAD, "ttft_seconds", "time to first token"),
        (_DRAWN_LOAD, "itl_seconds", "gap between events with text"),
        ("unary", "latency_seconds", "latency of 8 tokens in one piece"),
    ):
        found = document.distributions(results.records.get(label, Record()))
        if name in found:
            yield Distribution(f"{label}: {title}", found[name])


def content(
    results: Results, subject: Subject, *, began: datetime, measured_on: Mapping[str, object]
) -> dict[str, object]:
    """Everything about a comparison, for JSON."""
    programme = results.programme
    return {
        **document.heading("make bench", began=began, measured_on=measured_on),
        "subject": str(programme.subject),
        "sides": [str(side) for side in programme.sides],
        "num_runs": programme.num_runs,
        "num_blocks_per_run": programme.num_blocks,
        "engine_arguments": without_paths(subject.engine_line),
        "rows": [{"load": label, **row.as_document()} for label, row in results.rows()],
        "starts": results.starts.as_document(),
        "loads": {
            label: {**_load(results, label), **document.measured(record)} for label, record in results.records.items()
        },
    }


def _load(results: Results, label: str) -> dict[str, object]:
    load = results.programme.loads[label]
    return {"load": {**asdict(replace(load, arrivals=ClosedLoop(0))), "arrivals": arrivals_text(load)}}


def without_paths(line: tuple[str, ...]) -> list[str]:
    """A command line in which paths have become their last parts."""
    return [Path(word).name if word.startswith("/") else word for word in line]


def paths(results: Results, folder: Path) -> tuple[Path, Path]:
    """Where the document and the picture of this comparison go."""
    stem = f"bench-{results.programme.subject}-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}"
    return folder / f"{stem}.json", folder / f"{stem}.png"
