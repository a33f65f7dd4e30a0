"""Arrivals of a real service, made to fit a small engine: the Azure LLM inference trace 2023, conversation.

The trace has 5.5 requests a second with 1,155 prompt and 211 output tokens in the mean, far more than this engine
does. *Clipped*: prompts and outputs are cut to a length that the engine can hold many of. *Thinned*: each request is
kept with the same probability, independently, so that the rate's ups and downs stay in proportion, and the mean load is
what is wanted. Each request that is kept is one tenant's, drawn with given odds.

Without the trace, `generated` makes one with the same statistics (19,366 requests over 3,502 s): a rate that is
gamma-distributed and changes each minute (variance/mean of the counts in a minute: 16), exponential gaps within the
minute (all gaps: mean 0.181 s, coefficient of variation 1.09), and lengths by the quantiles of the trace, prompts and
outputs independently (their correlation is -0.11).
"""

import random
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from headrace_server.bench.trace import TraceRow, read_trace
from loadtests.fair.loads import Ask, Due

_REQUESTS_PER_SECOND = 5.53
_MINUTE_SECONDS = 60.0
_DISPERSION = 16.1
_SHARES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_PROMPT_TOKENS = (2, 29, 181, 396, 1020, 1189, 2735, 4083, 4142, 14050)
_OUTPUT_TOKENS = (10, 16, 41, 85, 129, 395, 424, 451, 601, 1000)


def trace_rows(path: Path, seconds: float, *, seed: int) -> tuple[tuple[TraceRow, ...], str]:
    """The first so many seconds of the trace, and where they are from. Raises UsageError where the file is wrong."""
    if path.exists():
        rows = tuple(row for row in read_trace(path) if row.at_seconds < seconds)
        return rows, f"the first {seconds:g} s of {path.name}"
    return generated(seconds, seed=seed), "a generator with the trace's statistics"


def generated(seconds: float, *, seed: int) -> tuple[TraceRow, ...]:
    """See the module."""
    chance = random.Random(seed)
    per_minute = _REQUESTS_PER_SECOND * _MINUTE_SECONDS
    shape = per_minute / (_DISPERSION - 1)
    rows: list[TraceRow] = []
    at = 0.0
    minute, rate = -1, 0.0
    while True:
        if int(at / _MINUTE_SECONDS) > minute:
            minute, rate = int(at / _MINUTE_SECONDS), chance.gammavariate(shape, per_minute / shape) / _MINUTE_SECONDS
        at += chance.expovariate(rate)
        if at >= seconds:
            return tuple(rows)
        rows.append(TraceRow(at, _drawn(_PROMPT_TOKENS, chance), _drawn(_OUTPUT_TOKENS, chance)))


def _drawn(quantiles: Sequence[int], chance: random.Random) -> int:
    """A length, linear between the quantiles."""
    share = chance.random()
    above = bisect_right(_SHARES, share)
    low, high = quantiles[above - 1], quantiles[above]
    return round(low + (high - low) * (share - _SHARES[above - 1]) / (_SHARES[above] - _SHARES[above - 1]))


def clipped(rows: Iterable[TraceRow], *, most_prompt_tokens: int, most_output_tokens: int) -> tuple[TraceRow, ...]:
    """The same requests, none of them longer than that."""
    return tuple(
        TraceRow(
            row.at_seconds, min(row.num_prompt_tokens, most_prompt_tokens), min(row.num_tokens, most_output_tokens)
        )
        for row in rows
    )


def thinned(rows: Sequence[TraceRow], share: float, *, seed: int) -> tuple[TraceRow, ...]:
    """Each request is kept with that probability. Raises ValueError where that is more than 1."""
    if share > 1:
        raise ValueError("the trace has too few requests for that")
    chance = random.Random(seed)
    return tuple(row for row in rows if chance.random() < share)


def of_tenants(rows: Iterable[TraceRow], odds: Mapping[str, float], *, seed: int) -> tuple[Due, ...]:
    """Whose each request is."""
    chance = random.Random(seed)
    tenants, weights = list(odds), list(odds.values())
    return tuple(
        Due(row.at_seconds, Ask(chance.choices(tenants, weights)[0], row.num_prompt_tokens, row.num_tokens))
        for row in rows
    )
