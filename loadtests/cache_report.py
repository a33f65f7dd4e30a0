"""How the findings of `bench-cache` are shown."""

from collections.abc import Iterator

from loadtests.cache_findings import Line
from loadtests.row_report import RowReport, span, verdict


def _cells(line: Line) -> Iterator[str]:
    yield line.shown(line.found.value)
    yield span(line.found, line.measure.shown)
    yield str(line.found.num_pairs)
    yield verdict(line, line.measure.shown)


REPORT = RowReport(
    "bench-cache",
    "model cache",
    "seen: median of the runs (ratios: of their pairs), or the worst of them; rows: loadtests/README.md",
    ("seen", "range", "runs", "target"),
    _cells,
)
