"""Row `overload`: good answers a second when four times as much is asked as the engine can do, against the most that
there are at any load. Nothing is tuned. A good answer has its first text within 1.5 s, and each further token within
0.2 s in the mean.

Requests come from clients that wait for an answer (class `interactive`); beside it, of clients that name no class, and
of such that say until when they want the whole answer: 1.5 s and 0.2 s for each further token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace_server.bench.stats import percentile
from headrace_server.bench.summary import Slo
from headrace_server.domain import ServiceClass
from loadtests.fair.answers import Answer, goodput, refusals
from loadtests.fair.findings import MILLISECONDS, RATE, RATIO, Findings, at_least, at_most
from loadtests.fair.loads import Ask, poisson
from loadtests.fair.scale import Scale
from loadtests.fair.virtual_server import Setup, VirtualServer, first_come, virtually

OVERLOAD = 4.0

_SLO = Slo()
_LOADS = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1)
_LEAST_RATIO = 0.90
_MOST_REFUSAL_SECONDS = 0.02
_WARM_UP_SECONDS = 10.0
_GRACE_SECONDS = 10.0
_INTERACTIVE = Ask("clients", 128, 32, service_class=ServiceClass.INTERACTIVE)
_STANDARD = replace(_INTERACTIVE, service_class=ServiceClass.STANDARD)
_WITH_DEADLINE = replace(
    _STANDARD, deadline_seconds=_SLO.ttft_seconds + (_STANDARD.num_output_tokens - 1) * _SLO.tpot_seconds
)


@dataclass(frozen=True, slots=True)
class _Outcome:
    good_per_second: float
    answers: Sequence[Answer]


def measure_overload(scale: Scale) -> Findings:
    """The peak, and four times the engine's capacity, for each kind of client."""
    findings, fair, unfair = Findings(), Setup(), first_come(Setup())
    peaks = [max(_run(setup, _INTERACTIVE, load, scale).good_per_second for load in _LOADS) for setup in (fair, unfair)]
    findings.add("peak goodput", RATE, peaks[0], theirs=peaks[1])
    theirs = _run(unfair, _INTERACTIVE, OVERLOAD, scale).good_per_second / peaks[1]
    for name, ask in (("interactive", _INTERACTIVE), ("no class", _STANDARD), ("with a deadline", _WITH_DEADLINE)):
        outcome = _run(fair, ask, OVERLOAD, scale)
        target = at_least(_LEAST_RATIO) if ask is _INTERACTIVE else None
        title = f"{name}: goodput at 4 × / peak"
        findings.add(title, RATIO, outcome.good_per_second / peaks[0], theirs=theirs, target=target)
        _tell(findings, name, outcome)
    return findings


def _tell(findings: Findings, name: str, outcome: _Outcome) -> None:
    counts = refusals(outcome.answers)
    text = ", ".join(f"{count} {code}" for code, count in sorted(counts.items())) or "none refused"
    findings.remarks.append(f"{name}: of {len(outcome.answers)} requests {text}")
    costs = [answer.refused.cost_seconds for answer in outcome.answers if answer.refused is not None]
    if name == "interactive" and costs:
        title = "processor time until a refusal, p99"
        findings.add(title, MILLISECONDS, percentile(costs, 99), target=at_most(_MOST_REFUSAL_SECONDS))


def _run(setup: Setup, ask: Ask, load: float, scale: Scale) -> _Outcome:
    rate = load * setup.engine.requests_per_second(ask.num_prompt_tokens, ask.num_output_tokens)
    seconds = _WARM_UP_SECONDS + scale.seconds

    async def work(server: VirtualServer) -> _Outcome:
        began = server.now()
        due = poisson(ask, rate, seconds, seed=f"overload {load}")
        answers = await server.open_loop(due, most_seconds=seconds + _GRACE_SECONDS)
        begin, end = began + _WARM_UP_SECONDS, began + seconds
        return _Outcome(goodput(answers, _SLO, begin=begin, end=end), answers)

    return virtually(setup, work)
