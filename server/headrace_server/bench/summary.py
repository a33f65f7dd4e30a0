"""What a block came to: figures, distributions of latencies, and an account of every request. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from headrace_server.bench import measures
from headrace_server.bench.arrivals import BlockPlan
from headrace_server.bench.generator import Traffic
from headrace_server.bench.measures import Measure
from headrace_server.bench.outcomes import Complete, Failed, Outcome, Refused, judge
from headrace_server.bench.stats import percentile

# Beyond these the client, not the server, may be what was measured.
BUSY_CORE_SHARE = 0.7
LATE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Slo:
    """What a good answer is: the first text this soon, and the mean time per further token this short."""

    ttft_seconds: float = 1.5
    tpot_seconds: float = 0.2


@dataclass(slots=True)
class Latencies:
    """Every single latency, in seconds; `itl` has one for each gap, the others one for each request."""

    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)

    def extend(self, other: "Latencies") -> None:
        for name in ("ttft", "itl", "tpot", "latency"):
            getattr(self, name).extend(getattr(other, name))


@dataclass(slots=True)
class Tally:
    """Every request that was sent, by what became of it; reasons are kept once each."""

    num_sent: int = 0
    num_complete: int = 0
    num_failed: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def extend(self, other: "Tally") -> None:
        self.num_sent += other.num_sent
        self.num_complete += other.num_complete
        self.num_failed += other.num_failed
        self.refused.update(other.refused)
        self.reasons.update(other.reasons)

    def check_integrity(self) -> None:
        """Raise RuntimeError unless sent = complete + refused + failed."""
        told = self.num_complete + self.refused.total() + self.num_failed
        if told != self.num_sent:
            raise RuntimeError(f"{self.num_sent} requests were sent, and {told} have an outcome")


@dataclass(frozen=True, slots=True)
class ClientCost:
    """What this process did in one block: its processor time, the time, and its p99 lateness in an open loop."""

    cpu_seconds: float
    wall_seconds: float
    num_tokens: int
    late_p99_seconds: float

    @property
    def was_the_bottleneck(self) -> bool:
        """Its core was busy, or it sent late: then the figures may be its own."""
        return self.cpu_seconds > BUSY_CORE_SHARE * self.wall_seconds or self.late_p99_seconds > LATE_SECONDS


@dataclass(frozen=True, slots=True)
class BlockResult:
    """One block of one side. `client` is None where no requests of ours were involved."""

    figures: Mapping[Measure, float]
    latencies: Latencies
    tally: Tally
    client: ClientCost | None
    num_tokens: int


def summarise(traffic: Traffic, plan: BlockPlan, *, stream: bool, slo: Slo) -> BlockResult:
    """Read the replies of a block and count them."""
    outcomes = [
        judge(exchange, plan.requests[exchange.place].num_tokens, stream=stream) for exchange in traffic.exchanges
    ]
    complete = [outcome for outcome in outcomes if isinstance(outcome, Complete)]
    num_tokens = sum(answer.num_tokens for answer in complete)
    late = [answer.late_seconds for answer in complete]
    return BlockResult(
        figures=figures_of(complete, stream=stream, slo=slo) if complete else {},
        latencies=latencies_of(complete),
        tally=tally_of(outcomes, traffic.num_sent),
        client=ClientCost(traffic.cpu_seconds, traffic.wall_seconds, num_tokens, percentile(late, 99) if late else 0.0),
        num_tokens=num_tokens,
    )


def tally_of(outcomes: Sequence[Outcome], num_sent: int) -> Tally:
    """The account of a block.

    Raises:
        RuntimeError: a request has no outcome, or one too many.
    """
    tally = Tally(num_sent=num_sent)
    for outcome in outcomes:
        match outcome:
            case Complete():
                tally.num_complete += 1
            case Refused(status, message):
                tally.refused[status] += 1
                tally.reasons[f"{status}: {message}"] += 1
            case Failed(reason):
                tally.num_failed += 1
                tally.reasons[reason] += 1
    tally.check_integrity()
    return tally


def latencies_of(answers: Sequence[Complete]) -> Latencies:
    """Every latency that the answers have; one of a single token has no TPOT, one in a single piece only a latency."""
    return Latencies(
        ttft=[ttft_seconds(answer) for answer in answers if answer.text_stamps],
        itl=[later - earlier for answer in answers for earlier, later in pairwise(answer.text_stamps)],
        tpot=[tpot for answer in answers if (tpot := tpot_seconds(answer)) is not None],
        latency=[answer.ended_at - answer.began_at for answer in answers],
    )


def ttft_seconds(answer: Complete) -> float:
    """Time to the first event with text."""
    return answer.text_stamps[0] - answer.began_at


def tpot_seconds(answer: Complete) -> float | None:
    """(latency - TTFT) / (tokens - 1), tokens as usage counts them; None where that says nothing."""
    if not answer.text_stamps or answer.num_tokens < 2:
        return None
    return (answer.text_stamps[-1] - answer.text_stamps[0]) / (answer.num_tokens - 1)


def is_good(answer: Complete, slo: Slo) -> bool:
    """Whether a stream met its SLO; a single token has no TPOT to miss."""
    tpot = tpot_seconds(answer)
    return ttft_seconds(answer) <= slo.ttft_seconds and (tpot is None or tpot <= slo.tpot_seconds)


def figures_of(answers: Sequence[Complete], *, stream: bool, slo: Slo) -> dict[Measure, float]:
    """The figures of a block; rates are per second from the first request to the end of the last answer.

    Raises:
        ValueError: no answers.
    """
    seconds = max(answer.ended_at for answer in answers) - min(answer.began_at for answer in answers)
    latencies = latencies_of(answers)
    figures = {measures.REQUEST_RATE: len(answers) / seconds, **_percentiles(latencies)}
    if stream:
        num_tokens = sum(answer.num_tokens for answer in answers)
        figures |= {
            measures.THROUGHPUT: num_tokens / seconds,
            measures.GOODPUT: sum(is_good(answer, slo) for answer in answers) / seconds,
            measures.EVENTS_PER_TOKEN: sum(len(answer.text_stamps) for answer in answers) / num_tokens,
        }
    return figures


def _percentiles(latencies: Latencies) -> dict[Measure, float]:
    wanted = (
        (latencies.ttft, measures.TTFT_P50, measures.TTFT_P99),
        (latencies.itl, measures.ITL_P50, measures.ITL_P99),
        (latencies.tpot, measures.TPOT_P50, measures.TPOT_P99),
        (latencies.latency, measures.LATENCY_P50, measures.LATENCY_P99),
    )
    figures = {}
    for values, p50, p99 in wanted:
        if values:
            figures[p50], figures[p99] = percentile(values, 50), percentile(values, 99)
    return figures
