"""What one row of `bench-fair` found: lines of the table, with what the other side did beside them. Pure.

A line has one figure of Headrace, which its target is about, and the same figure of whoever is measured beside it: the
same server with first come, first served, or vLLM's own server.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace_server.bench.document import estimate_document
from headrace_server.bench.measures import Measure
from headrace_server.bench.stats import Estimate, Sense, Target, estimate, median
from loadtests.cache_findings import slug

SEED = 26

RATIO = Measure("ratio", "", "×", digits=3)
INDEX = Measure("index", "", "", digits=4)
SHARE = Measure("share", "", "%", 100, 1)
SECONDS = Measure("seconds", "", "s", digits=3)
MILLISECONDS = Measure("seconds", "", "ms", 1e3, 1)
TOKENS = Measure("weighted_tokens", "", "tokens", digits=0)
TOKEN_RATE = Measure("weighted_tokens_per_second", "", "tokens/s", digits=0)
RATE = Measure("requests_per_second", "", "1/s", digits=2)
COUNT = Measure("count", "", "", digits=0)
STEPS = Measure("full_steps", "", "steps", digits=2)


def at_most(value: float) -> Target:
    """Less is better."""
    return Target(Sense.AT_MOST, value)


def at_least(value: float) -> Target:
    """More is better."""
    return Target(Sense.AT_LEAST, value)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table. `found` has one value for each run; `theirs` the median of the other side's."""

    title: str
    measure: Measure
    found: Estimate
    theirs: float | None = None
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
            "key": slug(self.title),
            "title": self.title,
            "measure": self.measure.name,
            **estimate_document(self.found),
            "theirs": self.theirs,
            "target": target,
            "met": self.met,
        }


@dataclass(slots=True)
class Findings:
    """Of one row. `samples` are single measurements worth keeping, by name."""

    lines: list[Line] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    samples: dict[str, Sequence[float]] = field(default_factory=dict)

    def add(
        self,
        title: str,
        measure: Measure,
        ours: float | Sequence[float],
        *,
        theirs: float | Sequence[float] | None = None,
        target: Target | None = None,
    ) -> None:
        """A line; several values are those of several runs, and their median counts."""
        values = [ours] if isinstance(ours, (int, float)) else list(ours)
        others = None if theirs is None else median([theirs] if isinstance(theirs, (int, float)) else list(theirs))
        self.lines.append(Line(title, measure, estimate(values, seed=SEED), others, target))

    def as_document(self) -> dict[str, object]:
        """For JSON."""
        samples = {name: [float(f"{value:.6g}") for value in values] for name, values in self.samples.items()}
        return {"lines": [line.as_document() for line in self.lines], "remarks": self.remarks, "samples": samples}
