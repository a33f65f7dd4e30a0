"""What one row of `bench-cache` found: every single measurement, the lines of the table, and what else one must know.

Pure. A line is one figure with its range and, where there is one, its target. Ratios are of pairs that ran right after
one another; a target that nothing may break is judged by the worst run, not by the median.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace_server.bench.document import estimate_document
from headrace_server.bench.measures import Measure, Samples
from headrace_server.bench.stats import Estimate, Interval, Sense, Target, estimate, paired_ratios

SEED = 22
MIB = 2**20

SECONDS = Measure("seconds", "time", "s", digits=2)
FIRST_TENSOR = Measure("first_tensor_seconds", "first tensor", "s", digits=2)
ORIGIN_BYTES = Measure("origin_bytes", "sent by the origin", "MiB", 1 / MIB, 1)
RATIO = Measure("ratio", "", "×", digits=3)


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of the table; `measure` says how it is written, `key` names it in the document."""

    key: str
    title: str
    measure: Measure
    found: Estimate
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """None: there is no target."""
        return None if self.target is None else self.target.met_by(self.found)

    def shown(self, value: float) -> str:
        """A value with its unit."""
        return f"{self.measure.shown(value)} {self.measure.unit}".strip()

    def as_document(self) -> dict[str, object]:
        """For JSON, in the measure's own unit, not in the one that is shown."""
        target = None if self.target is None else {"sense": str(self.target.sense), "value": self.target.value}
        return {
            "key": self.key,
            "title": self.title,
            "measure": self.measure.name,
            **estimate_document(self.found),
            "target": target,
            "met": self.met,
        }


@dataclass(slots=True)
class Findings:
    """Of one row. The n-th samples of all sides belong together."""

    samples: Samples = field(default_factory=Samples)
    lines: list[Line] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def median(self, title: str, measure: Measure, side: str, target: Target | None = None) -> None:
        """A line with the median of a side; none where it was not measured."""
        if values := self.samples.of(measure, side):
            self.add(title, measure, estimate(values, seed=SEED), target, side=side)

    def worst(self, title: str, measure: Measure, side: str, target: Target | None = None) -> None:
        """A line with the highest value of a side."""
        if values := self.samples.of(measure, side):
            self.add(title, measure, worst_of(values), target, side=side)

    def ratio(self, title: str, measure: Measure, ours: str, theirs: str, target: Target | None = None) -> None:
        """A line with the median of ours / theirs, pair by pair."""
        pairs = self.samples.pairs(measure, ours, theirs)
        if pairs[0]:
            found = estimate(paired_ratios(*pairs), seed=SEED)
            self.lines.append(Line(f"{measure.name}_ratio_{slug(ours)}", title, RATIO, found, target))

    def add(
        self, title: str, measure: Measure, found: Estimate, target: Target | None = None, *, side: str = ""
    ) -> None:
        """A line."""
        key = f"{measure.name}_{slug(side)}" if side else measure.name
        self.lines.append(Line(key, title, measure, found, target))

    def failed(self, side: str, error: Exception) -> None:
        """A side could not be measured; the first line of the reason is kept, which names no paths."""
        self.remarks.append(f"{side}: {first_line(error)}")

    def as_document(self) -> dict[str, object]:
        """For JSON: the lines, and every single measurement."""
        return {
            "lines": [line.as_document() for line in self.lines],
            "remarks": self.remarks,
            "samples": self.samples.as_document(),
        }


def first_line(error: Exception) -> str:
    """What an error says first, or what it is where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def slug(text: str) -> str:
    """A name for keys: words of letters and digits, joined by underscores."""
    return "_".join("".join(char if char.isalnum() else " " for char in text.lower()).split())


def worst_of(values: Sequence[float]) -> Estimate:
    """The highest of some values, and their range. Raises ValueError where there are none."""
    return Estimate(max(values), None, Interval(min(values), max(values)), len(values))


def at_most(value: float) -> Target:
    """A target that less is better for."""
    return Target(Sense.AT_MOST, value)
