"""What was measured as JSON, small enough to keep with a project: samples by block, distributions as 101 quantiles.

A document holds no path, host name, user name, prompt or answer.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from headrace_server.bench.machine import commit, versions
from headrace_server.bench.record import Record
from headrace_server.bench.stats import Estimate, Interval, median, quantiles
from headrace_server.bench.summary import Tally
from headrace_server.errors import UsageError

FORMAT = 2

_NUMBERS = re.compile(r"\[\n[-+.e\d,\s]*\]")


def heading(kind: str, *, began: datetime, measured_on: Mapping[str, object]) -> dict[str, object]:
    """When, on what and of which source; `measured_on` is `machine()` from before anything ran."""
    return {
        "format": FORMAT,
        "kind": kind,
        "began": began.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": measured_on,
        "versions": versions(),
    }


def measured(record: Record) -> dict[str, object]:
    """Requests, this client's own cost, samples and distributions."""
    return {
        "requests": {side: _requests(tally) for side, tally in record.tallies.items()},
        "client": {
            "client_cpu_seconds_per_token": record.client_cpu_seconds_per_token,
            "core_share_highest": record.client_core_share,
            "late_p99_seconds_highest": record.late_p99_seconds,
            "generator_bound": record.is_generator_bound,
        },
        "samples": record.samples.as_document(),
        "quantiles": distributions(record),
    }


def _requests(tally: Tally) -> dict[str, object]:
    return {
        "sent": tally.num_sent,
        "complete": tally.num_complete,
        "refused": {str(status): count for status, count in sorted(tally.refused.items())},
        "failed": tally.num_failed,
    }


def distributions(record: Record) -> dict[str, dict[str, tuple[float, ...]]]:
    """101 quantiles of each latency of each side, all blocks together, in seconds."""
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    for side, latencies in record.latencies.items():
        for name in ("ttft", "itl", "tpot", "latency"):
            if values := getattr(latencies, name):
                rounded = tuple(float(f"{value:.5g}") for value in quantiles(values))
                found.setdefault(f"{name}_seconds", {})[side] = rounded
    return found


def comparisons(record: Record, ours: str, theirs: str, *, seed: int) -> dict[str, object]:
    """ours / theirs by measure: medians of both, and what the pairs say about the ratio."""
    return {
        measure.name: {
            "ours": median(record.samples.of(measure, ours)),
            "theirs": median(record.samples.of(measure, theirs)),
            "ratio": estimate_document(ratio),
        }
        for measure, ratio in record.samples.ratios(ours, theirs, seed=seed).items()
    }


def estimate_document(estimate: Estimate) -> dict[str, object]:
    """An estimate with its 95 % confidence interval and the range of its pairs."""
    return {
        "median": estimate.value,
        "confidence_95": _interval(estimate.confidence),
        "range": _interval(estimate.range),
        "num_pairs": estimate.num_pairs,
    }


def _interval(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def check_can_be_written(path: Path, option: str) -> None:
    """Raise UsageError where a file could not be made there; better now than after an hour."""
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{option}: no file can be made at {path}")


def save(content: Mapping[str, object], path: Path) -> None:
    """Write a document.

    Raises:
        UsageError: the file cannot be written.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False)
    try:
        path.write_text(_NUMBERS.sub(_on_one_line, text) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _on_one_line(numbers: re.Match[str]) -> str:
    return " ".join(numbers[0].split())
