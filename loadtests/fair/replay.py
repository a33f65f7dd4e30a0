"""Row `trace`: the arrivals of a real service (`trace_load`), of four tenants, one of which has seven tenths of them.

There are two runs: with nine tenths of what the engine can do, and with one and a half times as much. Prompts are cut
to 256 tokens and outputs to 64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace_server.bench.summary import Slo
from headrace_server.bench.trace import TraceRow
from loadtests.fair.answers import Answer, goodput, ttft
from loadtests.fair.engine_model import EngineModel
from loadtests.fair.findings import RATE, RATIO, SECONDS, Findings, at_least
from loadtests.fair.scale import Scale
from loadtests.fair.trace_load import clipped, of_tenants, thinned, trace_rows
from loadtests.fair.virtual_server import Setup, VirtualServer, first_come, virtually

TRACE = Path(__file__).resolve().parents[3] / "shared" / "traces" / "azure-llm-2023-conv.csv"
HEAVY = "heavy"
ODDS = {HEAVY: 0.7, "light-1": 0.1, "light-2": 0.1, "light-3": 0.1}

_MOST_PROMPT_TOKENS, _MOST_OUTPUT_TOKENS = 256, 64
_LOADS = (0.9, 1.5)
_LEAST_THROUGHPUT = 0.97
_WARM_UP_SECONDS = 10.0
_PATIENCE_SECONDS = 60.0
_SPAN = 4
_SLO = Slo()


def measure_trace(scale: Scale, path: Path = TRACE) -> Findings:
    """Both loads."""
    findings = Findings()
    engine = EngineModel()
    seconds = _SPAN * scale.seconds
    rows, source = trace_rows(path, seconds, seed=2023)
    rows = clipped(rows, most_prompt_tokens=_MOST_PROMPT_TOKENS, most_output_tokens=_MOST_OUTPUT_TOKENS)
    findings.remarks.append(f"{source}; prompts cut to {_MOST_PROMPT_TOKENS} tokens, outputs to {_MOST_OUTPUT_TOKENS}")
    for load in _LOADS:
        kept = thinned(rows, load / utilisation(rows, engine, seconds), seed=7)
        findings.remarks.append(f"{load:g} × capacity: {len(kept)} of {len(rows)} requests kept")
        _compare(findings, load, kept, seconds)
    return findings


def utilisation(rows: Sequence[TraceRow], engine: EngineModel, seconds: float) -> float:
    """The part of its time that the engine would need for all of them; may be more than 1."""
    return sum(engine.request_seconds(row.num_prompt_tokens, row.num_tokens) for row in rows) / seconds


@dataclass(frozen=True, slots=True)
class _Outcome:
    """`work` is what was done while the requests came."""

    answers: list[Answer]
    work: float

    def light_p99(self, most_seconds: float) -> float:
        """Of the TTFT of all light tenants."""
        light = [answer for answer in self.answers if answer.ask.tenant != HEAVY]
        return ttft(light, most_seconds=most_seconds)

    def goodput(self, seconds: float) -> float:
        """Of all tenants."""
        began = self.answers[0].due_at
        return goodput(self.answers, _SLO, begin=began, end=began + seconds)


def _compare(findings: Findings, load: float, rows: Sequence[TraceRow], seconds: float) -> None:
    setup = Setup(weights=dict.fromkeys(ODDS, 1.0))
    ours, theirs = (_run(each, rows, seconds) for each in (setup, first_come(setup)))
    most_seconds = seconds + _PATIENCE_SECONDS
    p99s = [side.light_p99(most_seconds) for side in (ours, theirs)]
    findings.add(f"{load:g} × capacity: p99 TTFT of the light tenants", SECONDS, p99s[0], theirs=p99s[1])
    findings.add(f"{load:g} × capacity: goodput", RATE, ours.goodput(seconds), theirs=theirs.goodput(seconds))
    if load > 1:
        target = at_least(_LEAST_THROUGHPUT)
        findings.add(f"{load:g} × capacity: work done / first come", RATIO, ours.work / theirs.work, target=target)


def _run(setup: Setup, rows: Sequence[TraceRow], seconds: float) -> _Outcome:
    async def work(server: VirtualServer) -> _Outcome:
        began = server.now()
        answers = await server.open_loop(of_tenants(rows, ODDS, seed=4), most_seconds=seconds + _PATIENCE_SECONDS)
        service = server.witness.service
        done = sum(service.between(who, began + _WARM_UP_SECONDS, began + seconds) for who in ODDS)
        return _Outcome(answers, done)

    return virtually(setup, work)
