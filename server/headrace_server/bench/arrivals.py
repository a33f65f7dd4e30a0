"""What a block of requests consists of, and when each of them is due. Pure: equal loads and numbers give equal plans.

A *closed* loop has a fixed number of streams, each of which sends its next request when the last one was answered: it
finds the most that a server does. In an *open* loop requests come when they come, whatever became of those before: a
Poisson process, or the times of a recorded trace. The warm-up before a block is a short closed loop.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias, assert_never

from headrace_server.bench.prompts import make_prompt
from headrace_server.bench.trace import TraceRow

WARM_UP_STREAMS = 8
WARM_UP_TOKENS = 32


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """This many requests at a time."""

    num_streams: int


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals at a mean rate."""

    requests_per_second: float


@dataclass(frozen=True, slots=True)
class Replay:
    """The arrivals and lengths of a trace, `speed` times as fast; after its last request it begins again."""

    rows: tuple[TraceRow, ...]
    speed: float = 1.0


Arrivals: TypeAlias = ClosedLoop | Poisson | Replay


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """`due_seconds` after the beginning of the block; None: as soon as a stream is free."""

    prompt: str
    num_tokens: int
    due_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """One block. `num_streams` bounds the requests at a time; None: nothing does."""

    requests: tuple[PlannedRequest, ...]
    num_streams: int | None


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a server, block after block.

    Attributes:
        arrivals: when.
        num_requests: in each block.
        num_tokens, num_prompt_tokens: of each request; a replay takes them from its trace.
        num_warm_up: requests before each block that do not count.
        stream: ask for streams, else for answers in one piece.
        seed: of prompts and arrival times.
    """

    arrivals: Arrivals
    num_requests: int
    num_tokens: int = 128
    num_prompt_tokens: int = 32
    num_warm_up: int = WARM_UP_STREAMS
    stream: bool = True
    seed: int = 0

    def block(self, number: int) -> BlockPlan:
        """Block `number`; every side gets the same one."""
        match self.arrivals:
            case ClosedLoop(num_streams):
                return BlockPlan(tuple(self._alike(f"{self.seed}/{number}", self.num_requests)), num_streams)
            case Poisson(rate):
                times = poisson_times(rate, self.num_requests, seed=f"{self.seed}/{number}/arrivals")
                requests = self._alike(f"{self.seed}/{number}", self.num_requests)
                return BlockPlan(
                    tuple(
                        PlannedRequest(request.prompt, request.num_tokens, due)
                        for request, due in zip(requests, times, strict=True)
                    ),
                    None,
                )
            case Replay(rows, speed):
                return BlockPlan(tuple(self._replayed(rows, speed, number)), None)
            case _:
                assert_never(self.arrivals)

    def warm_up(self, number: int) -> BlockPlan:
        """What comes before block `number` and does not count."""
        streams = self.arrivals.num_streams if isinstance(self.arrivals, ClosedLoop) else WARM_UP_STREAMS
        requests = self._alike(f"{self.seed}/{number}/warm-up", self.num_warm_up, most_tokens=WARM_UP_TOKENS)
        return BlockPlan(tuple(requests), streams)

    def _alike(self, seed: str, count: int, *, most_tokens: int | None = None) -> Iterator[PlannedRequest]:
        num_tokens = self.num_tokens if most_tokens is None else min(self.num_tokens, most_tokens)
        for number in range(count):
            yield PlannedRequest(make_prompt(self.num_prompt_tokens, f"{seed}/{number}"), num_tokens)

    def _replayed(self, rows: tuple[TraceRow, ...], speed: float, block: int) -> Iterator[PlannedRequest]:
        first = block * self.num_requests
        began = _trace_time(rows, first)
        for place in range(first, first + self.num_requests):
            row = rows[place % len(rows)]
            prompt = make_prompt(row.num_prompt_tokens, f"{self.seed}/{place}")
            yield PlannedRequest(prompt, row.num_tokens, (_trace_time(rows, place) - began) / speed)


def poisson_times(rate: float, count: int, *, seed: str) -> tuple[float, ...]:
    """When each of `count` requests comes, in seconds: the gaps are exponential with mean 1 / `rate`."""
    random_gap = random.Random(seed).expovariate
    return tuple(accumulate(random_gap(rate) for _ in range(count)))


def _trace_time(rows: tuple[TraceRow, ...], place: int) -> float:
    """The time of request `place` of a trace that is repeated without end, with its mean gap between two rounds."""
    rounds, row = divmod(place, len(rows))
    whole = rows[-1].at_seconds
    mean_gap = whole / (len(rows) - 1) if len(rows) > 1 else 1.0
    return rounds * (whole + mean_gap) + rows[row].at_seconds
