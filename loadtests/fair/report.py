"""How the findings of `bench-fair` are shown."""

from collections.abc import Iterator

from loadtests.fair.findings import Line
from loadtests.row_report import RowReport, span, verdict


def _cells(line: Line) -> Iterator[str]:
    yield line.shown(line.found.value)
    yield "" if line.theirs is None else line.measure.shown(line.theirs)
    yield span(line.found, line.measure.shown)
    yield verdict(line, line.measure.shown)


REPORT = RowReport(
    "bench-fair",
    "request batcher",
    "other: first come, first served on the same engine; in `real`: vLLM's own server. Rows: loadtests/README.md",
    ("Headrace", "other", "range", "target"),
    _cells,
)
