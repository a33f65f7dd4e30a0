"""What one row of `bench-swap` found: every single measurement, the lines of the table, and what else one must know.

Pure. A line has what is measured of Headrace and, where there is something to hold against it (vLLM's own server, an
optimum, its own other start), that and the ratio of both. Ratios are of pairs that belong together; a target that
nothing may break is judged by the worst pair, not by the median.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from headrace_server.bench.document import estimate_document
from headrace_server.bench.measures import Measure, Samples
from headrace_server.bench.stats import Estimate, Target, estimate, median, paired_ratios
from loadtests.cache_findings import slug, worst_of

SEED = 24
MIB = 2**20

HEADRACE, VLLM = "Headrace", "vLLM"

FIRST_TOKEN = Measure("first_token_seconds", "first token", "s", digits=2)
ENGINE_START = Measure("engine_start_seconds", "engine start", "s", digits=2)

Judge: TypeAlias = Callable[[Sequence[float]], Estimate]


def typical(values: Sequence[float]) -> Estimate:
    """The median of some values, and their range. Raises ValueError where there are none."""
    return estimate(values, seed=SEED)


worst: Judge = worst_of


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table. `ours` and `theirs` are medians, or the worst; `found` is what the target is about: the
    ratio where there is something to hold against, else our own figure."""

    title: str
    measure: Measure
    ours: float
    theirs: float | None
    found: Estimate
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """None: there is no target."""
        return None if self.target is None else self.target.met_by(self.found)

    def as_document(self) -> dict[str, object]:
        """For JSON, in the measure's own unit, not in the one that is shown."""
        target = None if self.target is None else {"sense": str(self.target.sense), "value": self.target.value}
        return {
            "key": slug(self.title),
            "title": self.title,
            "measure": self.measure.name,
            "ours": self.ours,
            "theirs": self.theirs,
            "found": "ours" if self.theirs is None else "ratio",
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

    def alone(
        self, title: str, measure: Measure, side: str, target: Target | None = None, *, judge: Judge = typical
    ) -> None:
        """A line with a figure that nothing is held against; none where it was not measured."""
        if values := self.samples.of(measure, side):
            found = judge(values)
            self.lines.append(Line(title, measure, found.value, None, found, target))

    def against(
        self,
        title: str,
        measure: Measure,
        ours: str,
        theirs: str,
        target: Target | None = None,
        *,
        judge: Judge = typical,
    ) -> None:
        """A line with ours / theirs, pair by pair; none where a side was not measured."""
        pairs = self.samples.pairs(measure, ours, theirs)
        if pairs[0]:
            found = judge(paired_ratios(*pairs))
            self.lines.append(Line(title, measure, median(pairs[0]), median(pairs[1]), found, target))

    def as_document(self) -> dict[str, object]:
        """For JSON: the lines, and every single measurement."""
        return {
            "lines": [line.as_document() for line in self.lines],
            "remarks": self.remarks,
            "samples": self.samples.as_document(),
        }
