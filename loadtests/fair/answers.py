"""What became of requests, as their clients saw it, and what that comes to. Pure; times are in seconds of one clock."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headrace_server.bench.stats import percentile
from headrace_server.bench.summary import Slo
from loadtests.fair.loads import Ask

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Refused:
    """It was not served. `retry_after_seconds`: when the server said to come back; `cost_seconds`: until it said so."""

    code: str
    retry_after_seconds: float | None = None
    cost_seconds: float = 0.0


@dataclass(slots=True)
class Answer:
    """One request. `first_at` and `ended_at` are None where that did not come: the text's beginning, and its end."""

    ask: Ask
    due_at: float
    first_at: float | None = None
    ended_at: float | None = None
    refused: Refused | None = None
    failure: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether all of it came."""
        return self.ended_at is not None

    @property
    def ttft_seconds(self) -> float:
        """Until its first text; for ever where none came."""
        return NEVER if self.first_at is None else self.first_at - self.due_at

    @property
    def tpot_seconds(self) -> float:
        """Mean time of each further token; 0 where there is none."""
        if self.first_at is None or self.ended_at is None:
            return NEVER
        further = self.ask.num_output_tokens - 1
        return (self.ended_at - self.first_at) / further if further else 0.0

    def meets(self, slo: Slo) -> bool:
        """Whether it is a good answer."""
        return self.is_complete and self.ttft_seconds <= slo.ttft_seconds and self.tpot_seconds <= slo.tpot_seconds


def of_tenant(answers: Iterable[Answer], tenant: str) -> list[Answer]:
    """Those of one tenant."""
    return [answer for answer in answers if answer.ask.tenant == tenant]


def ttft(answers: Sequence[Answer], *, percent: float = 99, most_seconds: float) -> float:
    """A percentile of the time to the first text. Where none came it is taken as `most_seconds`, for which the client
    waited at least. Raises ValueError without answers."""
    return percentile([min(answer.ttft_seconds, most_seconds) for answer in answers], percent)


def goodput(answers: Iterable[Answer], slo: Slo, *, begin: float, end: float) -> float:
    """Good answers a second, of requests that were due from `begin` on and before `end`."""
    return sum(answer.meets(slo) for answer in answers if begin <= answer.due_at < end) / (end - begin)


def refusals(answers: Iterable[Answer]) -> dict[str, int]:
    """How many requests were refused, by code."""
    counts: dict[str, int] = {}
    for answer in answers:
        if answer.refused is not None:
            counts[answer.refused.code] = counts.get(answer.refused.code, 0) + 1
    return counts
