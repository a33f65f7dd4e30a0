"""Row `waits`: how far what requests are told of their waiting time is from how long they wait.

Each request is told once, when it has been put into the queue. An error counts in relation to the time that it waited,
or to 0.2 s where it waited for less: 0.25 is a quarter of the time, or 50 ms. Loads: one tenant that asks for a little
more than there is; a flood beside a light tenant; four tenants with requests of all lengths.
"""

import random
from collections.abc import Sequence

from headrace_server.bench.stats import median, percentile
from loadtests.fair.findings import SHARE, Findings, at_most
from loadtests.fair.loads import Ask, Due, poisson, together
from loadtests.fair.scale import Scale
from loadtests.fair.virtual_server import Setup, VirtualServer, virtually
from loadtests.fair.witness import Wait

_MOST_ERROR = 0.25
_LEAST_SECONDS = 0.2
_GRACE_SECONDS = 60.0
_PLAIN = Ask("one", 128, 32)


def measure_waits(scale: Scale) -> Findings:
    """All loads."""
    findings = Findings()
    seconds = scale.seconds / 2
    for name, load in _loads(seconds).items():
        waits = _run(load)
        errors = [error_of(wait) for wait in waits if wait.told_seconds is not None]
        if not errors:
            findings.remarks.append(f"{name}: nobody was told anything ({len(waits)} waited)")
            continue
        findings.add(f"{name}: median error", SHARE, median(errors), target=at_most(_MOST_ERROR))
        untold = sum(wait.told_seconds is None for wait in waits)
        p90 = percentile(errors, 90)
        findings.remarks.append(f"{name}: {len(waits)} waited, {untold} were told nothing; p90 of errors {p90:.0%}")
    return findings


def error_of(wait: Wait) -> float:
    """See the module."""
    told = wait.told_seconds or 0.0
    return abs(told - wait.waited_seconds) / max(wait.waited_seconds, _LEAST_SECONDS)


def _loads(seconds: float) -> dict[str, Sequence[Due]]:
    capacity = Setup().engine.requests_per_second(_PLAIN.num_prompt_tokens, _PLAIN.num_output_tokens)
    light, flood = Ask("light", 128, 32), Ask("flood", 128, 32)
    return {
        "one tenant": poisson(_PLAIN, 1.2 * capacity, seconds, seed="waits"),
        "flood": together(
            poisson(light, capacity / 8, seconds, seed="light"), poisson(flood, 2 * capacity, seconds, seed="flood")
        ),
        "mixture": _mixture(seconds),
    }


def _mixture(seconds: float) -> tuple[Due, ...]:
    """Four tenants; log-uniform lengths."""
    chance = random.Random("mixture")
    engine = Setup().engine
    asks = [
        Ask(f"tenant-{number % 4}", round(16 * 64 ** chance.random()), round(8 * 16 ** chance.random()))
        for number in range(10_000)
    ]
    at, load = 0.0, []
    for ask in asks:
        at += chance.expovariate(1.3) * engine.request_seconds(ask.num_prompt_tokens, ask.num_output_tokens)
        if at > seconds:
            break
        load.append(Due(at, ask))
    return tuple(load)


def _run(load: Sequence[Due]) -> list[Wait]:
    async def work(server: VirtualServer) -> list[Wait]:
        await server.open_loop(load, most_seconds=load[-1].at_seconds + _GRACE_SECONDS)
        return server.policy.waits if server.policy is not None else []

    return virtually(Setup(), work)
