"""Row `flood`: a light tenant's p99 TTFT while another one asks for sixteen times as much, against its own alone.

The light tenant sends an eighth of what the engine can do. The flood asks sixteen times as often, or as often for
prompts or outputs that are sixteen times as long; `batch` is the last one with requests of the batch class. In each the
engine is asked for more than it can do. A request that had no text when the run ended counts as if it had come then.
"""

from dataclasses import dataclass, replace

from headrace_server.domain import ServiceClass
from loadtests.fair.answers import Answer, of_tenant, ttft
from loadtests.fair.engine_model import EngineModel
from loadtests.fair.findings import MILLISECONDS, RATIO, STEPS, Findings, at_least, at_most
from loadtests.fair.loads import Ask, Due, poisson, together
from loadtests.fair.scale import Scale
from loadtests.fair.virtual_server import Setup, VirtualServer, first_come, virtually

LIGHT, FLOOD = "light", "flood"
FOLD = 16

_LIGHT_SHARE = 1 / 8
_PATIENCE_SECONDS = 60.0
_MOST_RATIO = 1.5
_MOST_STEPS = 2.0
_LEAST_THROUGHPUT = 0.97
# Before that, batches are being filled.
_WARM_UP_SECONDS = 5.0

SMALL = Ask(LIGHT, num_prompt_tokens=128, num_output_tokens=32)
FLOODS: dict[str, tuple[Ask, int]] = {
    "requests": (replace(SMALL, tenant=FLOOD), FOLD),
    "prompts": (replace(SMALL, tenant=FLOOD, num_prompt_tokens=FOLD * SMALL.num_prompt_tokens), 1),
    "outputs": (replace(SMALL, tenant=FLOOD, num_output_tokens=FOLD * SMALL.num_output_tokens), 1),
    "batch": (
        replace(
            SMALL,
            tenant=FLOOD,
            num_output_tokens=FOLD * SMALL.num_output_tokens,
            service_class=ServiceClass.BATCH,
            stream=False,
        ),
        1,
    ),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run. `served` is what both tenants got while the load came, in weighted tokens."""

    light: list[Answer]
    served: float
    num_preempted: int
    most_seconds: float

    @property
    def p99_seconds(self) -> float:
        """Of the light tenant's TTFT."""
        return ttft(self.light, most_seconds=self.most_seconds)


def measure_flood(scale: Scale) -> Findings:
    """All floods, and the light tenant alone."""
    findings = Findings()
    setup = Setup(weights={LIGHT: 1.0, FLOOD: 1.0})
    light = _light(scale)
    alone, theirs = _run(setup, light), _run(first_come(setup), light)
    findings.add("p99 TTFT alone", MILLISECONDS, alone.p99_seconds, theirs=theirs.p99_seconds)
    for name in FLOODS:
        _compare(findings, name, alone, run_flood(setup, name, scale), run_flood(first_come(setup), name, scale))
    findings.remarks.append(f"the light tenant sends {_light_rate():.2f} requests a second, {len(light)} in all")
    return findings


def run_flood(setup: Setup, name: str, scale: Scale) -> Outcome:
    """The light tenant beside one of the floods."""
    ask, fold = FLOODS[name]
    seconds = scale.num_requests / _light_rate()
    return _run(setup, together(_light(scale), poisson(ask, _light_rate() * fold, seconds, seed=name)))


def _light_rate() -> float:
    return EngineModel().requests_per_second(SMALL.num_prompt_tokens, SMALL.num_output_tokens) * _LIGHT_SHARE


def _light(scale: Scale) -> tuple[Due, ...]:
    return poisson(SMALL, _light_rate(), scale.num_requests / _light_rate(), seed=LIGHT)


def _compare(findings: Findings, name: str, alone: Outcome, ours: Outcome, theirs: Outcome) -> None:
    findings.add(
        f"{name}: p99 TTFT / alone",
        RATIO,
        ours.p99_seconds / alone.p99_seconds,
        theirs=theirs.p99_seconds / alone.p99_seconds,
        target=at_most(_MOST_RATIO),
    )
    step = EngineModel().full_step_seconds
    over = [(each.p99_seconds - alone.p99_seconds) / step for each in (ours, theirs)]
    findings.add(f"{name}: over alone, in full steps", STEPS, over[0], theirs=over[1], target=at_most(_MOST_STEPS))
    target = at_least(_LEAST_THROUGHPUT)
    findings.add(f"{name}: work done / first come", RATIO, ours.served / theirs.served, target=target)
    findings.samples[f"{name}_ttft_seconds"] = [min(a.ttft_seconds, ours.most_seconds) for a in ours.light]
    if refused := sum(answer.refused is not None for answer in ours.light):
        findings.remarks.append(f"{name}: {refused} of {len(ours.light)} requests of the light tenant were refused")
    if ours.num_preempted:
        findings.remarks.append(f"{name}: {ours.num_preempted} requests were taken out and began again")


def _run(setup: Setup, load: tuple[Due, ...]) -> Outcome:
    end = load[-1].at_seconds
    most_seconds = end + _PATIENCE_SECONDS

    async def work(server: VirtualServer) -> Outcome:
        began = server.now()
        answers = await server.open_loop(load, until_over=LIGHT, most_seconds=most_seconds)
        service, num_preempted = server.witness.service, 0 if server.policy is None else server.policy.num_preempted
        served = sum(service.between(each, began + _WARM_UP_SECONDS, began + end) for each in (LIGHT, FLOOD))
        return Outcome(of_tenant(answers, LIGHT), served, num_preempted, most_seconds)

    return virtually(setup, work)
