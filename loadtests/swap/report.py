"""How the findings of `bench-swap` are shown."""

from collections.abc import Iterator

from loadtests.row_report import RowReport, span, verdict
from loadtests.swap.findings import Line

_RATIO_DIGITS = 3


def _cells(line: Line) -> Iterator[str]:
    def shown(value: float) -> str:
        """What the target is about: a ratio, or a figure in its own unit."""
        return line.measure.shown(value) if line.theirs is None else f"{value:.{_RATIO_DIGITS}f}"

    yield f"{line.measure.shown(line.ours)} {line.measure.unit}".strip()
    yield "" if line.theirs is None else line.measure.shown(line.theirs)
    yield "" if line.theirs is None else shown(line.found.value)
    yield span(line.found, shown)
    yield str(line.found.num_pairs)
    yield verdict(line, shown)


REPORT = RowReport(
    "bench-swap",
    "engine pool",
    "ratio: median of the pairs, or the worst; what theirs is: loadtests/README.md",
    ("ours", "theirs", "ratio", "range", "runs", "target"),
    _cells,
)
