"""What is measured, in which unit and which way is better; and the samples of it.

There is one sample a block. Latencies are seconds of the client's clock. *TTFT* runs to the first event with text.
*ITL* is each gap between one event with text and the next: an event that carries several tokens ends one gap, so a
server that coalesces has fewer and longer gaps, and `EVENTS_PER_TOKEN` shows it. *TPOT* = (latency - TTFT) /
(tokens - 1) takes its tokens from the reply's usage and is the same however they were cut into events.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from headrace_server.bench.stats import Estimate, estimate, paired_ratios


class Better(StrEnum):
    """Which direction is the good one."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that is measured; shown as value times `scale`, with `digits` after the point, in `unit`."""

    name: str
    title: str
    unit: str
    scale: float = 1.0
    digits: int = 1
    better: Better = Better.LOWER

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def shown(self, value: float) -> str:
        return f"{value * self.scale:,.{self.digits}f}"


def _milliseconds(name: str, title: str) -> Measure:
    return Measure(name, title, "ms", 1e3, 2)


def _mebibytes(name: str, title: str) -> Measure:
    return Measure(name, title, "MiB", 2**-20, 0)


THROUGHPUT = Measure("output_tokens_per_second", "throughput", "tokens/s", better=Better.HIGHER)
REQUEST_RATE = Measure("requests_per_second", "requests", "1/s", digits=2, better=Better.HIGHER)
GOODPUT = Measure("goodput_requests_per_second", "goodput", "1/s", digits=2, better=Better.HIGHER)
TTFT_P50 = _milliseconds("ttft_p50_seconds", "TTFT p50")
TTFT_P99 = _milliseconds("ttft_p99_seconds", "TTFT p99")
ITL_P50 = _milliseconds("itl_p50_seconds", "ITL p50")
ITL_P99 = _milliseconds("itl_p99_seconds", "ITL p99")
TPOT_P50 = _milliseconds("tpot_p50_seconds", "TPOT p50")
TPOT_P99 = _milliseconds("tpot_p99_seconds", "TPOT p99")
LATENCY_P50 = _milliseconds("latency_p50_seconds", "latency p50")
LATENCY_P99 = _milliseconds("latency_p99_seconds", "latency p99")
EVENTS_PER_TOKEN = Measure("text_events_per_token", "events/token", "", digits=3, better=Better.HIGHER)
SERVER_CPU = Measure("server_cpu_seconds_per_token", "server CPU/token", "µs", 1e6)
SERVER_PEAK_RSS = _mebibytes("server_peak_rss_bytes", "server peak RSS")
SERVER_RSS = _mebibytes("server_rss_bytes", "server RSS")
SERVER_ANON_RSS = _mebibytes("server_rss_anon_bytes", "server RssAnon")
TREE_PEAK_RSS = _mebibytes("tree_peak_rss_bytes", "tree peak RSS")
TREE_ANON_RSS = _mebibytes("tree_rss_anon_bytes", "tree RssAnon")

# In the order in which they are shown.
MEASURES = (
    *(THROUGHPUT, REQUEST_RATE, GOODPUT),
    *(TTFT_P50, TTFT_P99, ITL_P50, ITL_P99, TPOT_P50, TPOT_P99, LATENCY_P50, LATENCY_P99, EVENTS_PER_TOKEN),
    *(SERVER_CPU, SERVER_RSS, SERVER_PEAK_RSS, SERVER_ANON_RSS, TREE_PEAK_RSS, TREE_ANON_RSS),
)


class Samples:
    """Samples by measure and side, in the order in which they were taken; the n-th ones of all sides belong together.

    Memory is linear in the number of blocks. One task adds.
    """

    def __init__(self) -> None:
        self._values: dict[Measure, dict[str, list[float]]] = {}

    def add(self, measure: Measure, side: str, value: float) -> None:
        self._values.setdefault(measure, {}).setdefault(side, []).append(value)

    def add_all(self, side: str, figures: Mapping[Measure, float]) -> None:
        for measure, value in figures.items():
            self.add(measure, side, value)

    def of(self, measure: Measure, side: str) -> Sequence[float]:
        """Empty where nothing was measured."""
        return self._values.get(measure, {}).get(side, ())

    def measures(self) -> Iterator[Measure]:
        """Everything that any side has a sample of, in the order of `MEASURES`, and then what else there is."""
        known = [measure for measure in MEASURES if measure in self._values]
        yield from (*known, *(measure for measure in self._values if measure not in known))

    def ratios(self, ours: str, theirs: str, *, seed: int) -> dict[Measure, Estimate]:
        """ours / theirs of every measure that both have pairs of; a block without its other half is left out."""
        pairs = {measure: self.pairs(measure, ours, theirs) for measure in self.measures()}
        return {
            measure: estimate(paired_ratios(*sides), seed=seed)
            for measure, sides in pairs.items()
            if sides[0] and min(sides[1]) > 0
        }

    def pairs(self, measure: Measure, *sides: str) -> tuple[Sequence[float], ...]:
        """The samples of several sides, cut to the number that all of them have."""
        values = [self.of(measure, side) for side in sides]
        shared = min(map(len, values))
        return tuple(part[:shared] for part in values)

    def as_document(self, measures: Iterable[Measure] | None = None) -> dict[str, dict[str, list[float]]]:
        """For JSON: six significant digits are more than any clock here is good for."""
        return {
            measure.name: {side: [float(f"{v:.9g}") for v in part] for side, part in self._values[measure].items()}
            for measure in (self.measures() if measures is None else measures)
        }
