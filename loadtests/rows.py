"""What a comparison is judged by: rows of three sides' figures, their targets, and whether those are met.

    against vLLM           Headrace / vLLM, ratio
    against the engine     Headrace / engine alone, ratio
    API layer              (Headrace - engine alone) / (vLLM - engine alone), of processor time per token
    added                  Headrace - engine alone, in the measure's unit; vLLM's is shown beside it

Everything is computed block by block, from blocks that ran right after one another, and the median of that is judged.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from headrace_server.bench import measures
from headrace_server.bench.document import estimate_document
from headrace_server.bench.measures import Measure, Samples
from headrace_server.bench.stats import Estimate, Sense, Target, estimate, median, paired_differences, paired_ratios
from loadtests.launcher import SideName
from loadtests.sides import FIRST_ANSWER

SEED = 20
OURS, VLLM, ENGINE = (str(name) for name in (SideName.HEADRACE, SideName.VLLM, SideName.ENGINE))


class Kind(Enum):
    """How a row is computed; the module says what each means."""

    AGAINST_VLLM = auto()
    AGAINST_ENGINE = auto()
    API_LAYER = auto()
    ADDED = auto()


@dataclass(frozen=True, slots=True)
class RowPlan:
    """One row, before there are samples."""

    kind: Kind
    measure: Measure
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row: medians of what is compared, the estimate, and its target. An ADDED row's values are seconds."""

    plan: RowPlan
    ours: float
    theirs: float
    found: Estimate

    @property
    def title(self) -> str:
        measure = self.plan.measure
        match self.plan.kind:
            case Kind.AGAINST_VLLM:
                return measure.heading
            case Kind.AGAINST_ENGINE:
                return f"{measure.title} / engine"
            case Kind.API_LAYER:
                return "API CPU/token (µs)"
            case Kind.ADDED:
                return f"added {measure.heading}"

    @property
    def verdict(self) -> str:
        """`≥ 1.50 met`, or `≥ 1.50 missed 12%` (by that much); `(CI)` where only the interval misses it."""
        target = self.plan.target
        if target is None:
            return ""
        is_ratio = self.plan.kind is not Kind.ADDED
        wanted = f"{target.sense} {target.value if is_ratio else target.value * self.plan.measure.scale:.2f}"
        if target.met_by(self.found):
            return f"{wanted} met"
        short = abs(self.found.value / target.value - 1)
        if Target(target.sense, target.value).met_by(self.found):
            return f"{wanted} missed (CI)"
        return f"{wanted} missed {short:.0%}"

    def as_document(self) -> dict[str, object]:
        target = self.plan.target
        document: dict[str, object] = {
            "row": self.title,
            "kind": self.plan.kind.name.lower(),
            "measure": self.plan.measure.name,
            "ours": self.ours,
            "theirs": self.theirs,
            "estimate": estimate_document(self.found),
        }
        if target is not None:
            document["target"] = f"{target.sense} {target.value}"
            document["met"] = target.met_by(self.found)
        return document


def rows_of(samples: Samples, plans: Sequence[RowPlan]) -> Iterator[Row]:
    """The rows that there are samples for."""
    for plan in plans:
        if (row := _row(samples, plan)) is not None:
            yield row


def _row(samples: Samples, plan: RowPlan) -> Row | None:
    match plan.kind:
        case Kind.AGAINST_VLLM:
            return _ratio(plan, *samples.pairs(plan.measure, OURS, VLLM))
        case Kind.AGAINST_ENGINE:
            return _ratio(plan, *samples.pairs(plan.measure, OURS, ENGINE))
        case Kind.API_LAYER:
            return _ratio(plan, *_beyond_the_engine(samples, plan.measure))
        case Kind.ADDED:
            ours, theirs = _beyond_the_engine(samples, plan.measure)
            return Row(plan, median(ours), median(theirs), estimate(ours, seed=SEED)) if ours else None


def _beyond_the_engine(samples: Samples, measure: Measure) -> tuple[Sequence[float], Sequence[float]]:
    """What both servers have more of than the engine alone, block by block."""
    ours, theirs, engine = samples.pairs(measure, OURS, VLLM, ENGINE)
    return paired_differences(ours, engine), paired_differences(theirs, engine)


def _ratio(plan: RowPlan, ours: Sequence[float], theirs: Sequence[float]) -> Row | None:
    if not ours or min(theirs) <= 0:
        return None
    return Row(plan, median(ours), median(theirs), estimate(paired_ratios(ours, theirs), seed=SEED))


def _at_least(value: float, confident: float | None = None) -> Target:
    return Target(Sense.AT_LEAST, value, confident)


def _at_most(value: float) -> Target:
    return Target(Sense.AT_MOST, value)


def _streamed(throughput: Target) -> tuple[RowPlan, ...]:
    """One-layer model: the API layer is what is measured."""
    return (
        RowPlan(Kind.AGAINST_VLLM, measures.THROUGHPUT, throughput),
        RowPlan(Kind.AGAINST_ENGINE, measures.THROUGHPUT, _at_least(0.8)),
        RowPlan(Kind.API_LAYER, measures.SERVER_CPU, _at_most(0.35)),
        RowPlan(Kind.AGAINST_VLLM, measures.SERVER_CPU),
        RowPlan(Kind.AGAINST_VLLM, measures.TTFT_P50),
        RowPlan(Kind.AGAINST_VLLM, measures.TPOT_P50),
        RowPlan(Kind.AGAINST_VLLM, measures.ITL_P99),
    )


ONE_LAYER_ROWS: Mapping[str, Sequence[RowPlan]] = {
    "16 streams": _streamed(_at_least(1.5)),
    "32 streams": _streamed(_at_least(1.5)),
    "64 streams": _streamed(_at_least(1.25)),
    "unary": (
        RowPlan(Kind.ADDED, measures.LATENCY_P50, _at_most(0.5e-3)),
        RowPlan(Kind.ADDED, measures.LATENCY_P99, _at_most(3e-3)),
        RowPlan(Kind.AGAINST_VLLM, measures.LATENCY_P50),
    ),
}

SMOLLM2_ROWS: Mapping[str, Sequence[RowPlan]] = {
    "16 streams": (
        RowPlan(Kind.AGAINST_VLLM, measures.THROUGHPUT, _at_least(1.0, confident=0.98)),
        RowPlan(Kind.AGAINST_VLLM, measures.TTFT_P50, _at_most(1.0)),
        RowPlan(Kind.AGAINST_VLLM, measures.TTFT_P99),
        RowPlan(Kind.AGAINST_VLLM, measures.ITL_P50),
        RowPlan(Kind.AGAINST_VLLM, measures.ITL_P99, _at_most(1.05)),
        RowPlan(Kind.AGAINST_VLLM, measures.SERVER_CPU),
        RowPlan(Kind.AGAINST_VLLM, measures.SERVER_RSS, _at_most(1.0)),
        RowPlan(Kind.AGAINST_VLLM, measures.SERVER_PEAK_RSS),
        RowPlan(Kind.AGAINST_VLLM, measures.TREE_PEAK_RSS),
    ),
    "start": (RowPlan(Kind.AGAINST_VLLM, FIRST_ANSWER, _at_most(1.05)),),
}
