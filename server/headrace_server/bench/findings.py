"""What one run of `headrace bench` found, and the three ways to show it: a table, a picture, a document."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path, PurePath

from rich.table import Table

from headrace_server.bench import document, measures, report
from headrace_server.bench.arrivals import ClosedLoop, Load, Poisson, Replay
from headrace_server.bench.picture import Bar, Distribution, draw
from headrace_server.bench.record import Record
from headrace_server.bench.side import Asking
from headrace_server.bench.summary import Slo

_DRAWN = (
    *(measures.THROUGHPUT, measures.GOODPUT, measures.TTFT_P50, measures.TTFT_P99, measures.ITL_P50, measures.ITL_P99),
    *(measures.TPOT_P50, measures.LATENCY_P50, measures.LATENCY_P99),
    *(measures.SERVER_CPU, measures.SERVER_RSS, measures.TREE_PEAK_RSS),
)
_DISTRIBUTIONS = {"ttft_seconds": "time to first token", "itl_seconds": "gap between events with text"}
_UNARY_DISTRIBUTIONS = {"latency_seconds": "latency"}


@dataclass(frozen=True, slots=True)
class Setting:
    """What was measured, and how.

    Attributes:
        names: of the sides, ours first.
        num_blocks: wanted for each side.
        paused: whether sides were stopped while they had no turn.
        cpu_source: where server processor time was read; empty where it was not.
    """

    names: tuple[str, ...]
    asking: Asking
    load: Load
    num_blocks: int
    slo: Slo
    paused: bool = False
    cpu_source: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """A finished run. `ended_early` says why there are fewer blocks than wanted; empty where there are not."""

    setting: Setting
    record: Record
    began: datetime
    measured_on: dict[str, object]
    remarks: tuple[str, ...] = ()
    ended_early: str = ""

    @property
    def _title(self) -> str:
        load = self.setting.load
        lengths = "lengths of the trace" if isinstance(load.arrivals, Replay) else f"{load.num_tokens} tokens each"
        kind = "" if load.stream else ", not streamed"
        return f"{PurePath(self.setting.asking.model).name}: {arrivals_text(load)}, {lengths}{kind}"

    @property
    def _is_comparison(self) -> bool:
        return len(self.setting.names) > 1

    def table(self) -> Table:
        names, seed = self.setting.names, self.setting.load.seed
        if self._is_comparison:
            return report.table_of_two(self.record, names[0], names[1], title=self._title, seed=seed)
        return report.table_of_one(self.record, names[0], self._title)

    def notes(self) -> Iterator[str]:
        """What stands below the table."""
        yield from report.notes(self.record)
        yield from self.remarks
        if self.setting.cpu_source:
            yield f"server CPU from the kernel's {self.setting.cpu_source}"
        yield f"seed {self.setting.load.seed}"
        if self.ended_early:
            yield self.ended_early

    def draw(self, path: Path) -> None:
        compared = f" ({' / '.join(self.setting.names)})" if self._is_comparison else ""
        draw(path, title=f"{self._title}{compared}", bars=self._bars(), distributions=self._distributions())

    def _bars(self) -> Sequence[Bar]:
        if not self._is_comparison:
            return ()
        ratios = self.record.samples.ratios(*self.setting.names, seed=self.setting.load.seed)
        return [Bar(measure.title, ratios[measure], measure.better) for measure in _DRAWN if measure in ratios]

    def _distributions(self) -> Sequence[Distribution]:
        wanted = _DISTRIBUTIONS if self.setting.load.stream else _UNARY_DISTRIBUTIONS
        found = document.distributions(self.record)
        return [Distribution(title, found[name]) for name, title in wanted.items() if name in found]

    def as_document(self) -> dict[str, object]:
        setting = self.setting
        compared = (
            document.comparisons(self.record, *setting.names, seed=setting.load.seed) if self._is_comparison else {}
        )
        return {
            **document.heading("headrace bench", began=self.began, measured_on=self.measured_on),
            "sides": list(setting.names),
            "arguments": self._arguments(),
            "ended_early": bool(self.ended_early),
            "paused_while_idle": setting.paused,
            "server_cpu_source": setting.cpu_source or None,
            **document.measured(self.record),
            "comparisons": compared,
        }

    def _arguments(self) -> dict[str, object]:
        """What was asked for, without addresses, keys and the folders of files."""
        setting = self.setting
        load = asdict(replace(setting.load, arrivals=ClosedLoop(0)))
        return {
            "model": PurePath(setting.asking.model).name,
            "endpoint": setting.asking.api.value,
            "num_blocks": setting.num_blocks,
            "slo": asdict(setting.slo),
            **load,
            "arrivals": arrivals_text(setting.load),
        }


def arrivals_text(load: Load) -> str:
    """How requests arrive, in a few words."""
    match load.arrivals:
        case ClosedLoop(num_streams):
            return f"{num_streams} stream{'' if num_streams == 1 else 's'}"
        case Poisson(rate):
            return f"Poisson arrivals, {rate:g}/s"
        case Replay(_, speed):
            return f"a trace at {speed:g} × its speed"
