"""Rows `shares`, `weights`, `keys`, `return`: how an engine is divided between tenants that always have more to ask.

In `shares` one tenant sends long prompts and the other one long outputs. In `weights` three send the same, with weights
1, 2 and 4. In `keys` one tenant has sixteen keys and the other one a single key. In `return` one of two leaves
for a while and comes back; what it did not use meanwhile is gone.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loadtests.fair.engine_model import EngineModel
from loadtests.fair.findings import INDEX, RATIO, SHARE, TOKENS, Findings, at_least, at_most
from loadtests.fair.loads import Ask, with_keys
from loadtests.fair.scale import Scale
from loadtests.fair.service import Service, jain, vtc_bound
from loadtests.fair.virtual_server import Setup, VirtualServer, first_come, virtually

ONE, OTHER = "one", "other"
WINDOW_SECONDS = 10.0

_LEAST_JAIN = 0.98
_LEAST_THROUGHPUT = 0.97
_MOST_DEVIATION = 0.05
# Until then the queue fills, and the policy gets to know the engine.
_WARM_UP_SECONDS = 10.0
# The first batch is all prompts and then all outputs; this is how long its requests take.
_SETTLE_SECONDS = 80.0
_LONG_PROMPT = Ask(ONE, num_prompt_tokens=384, num_output_tokens=8)
_LONG_OUTPUT = Ask(OTHER, num_prompt_tokens=32, num_output_tokens=128)
_PLAIN = Ask(ONE, num_prompt_tokens=128, num_output_tokens=32)
_NUM_STREAMS = 96
_NUM_KEYS = 16
# With as many as the engine has otherwise, the bound would be more than is served in a minute.
_FEW_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Division:
    """What tenants were served between two moments in which they always had more to ask."""

    service: Service
    begin: float
    end: float

    def deviation(self, weights: Mapping[str, float]) -> float:
        """By how much the share of one is off at most, of what its weight entitles it to."""
        shares = self.service.shares(weights, self.begin, self.end)
        return max(abs(share * len(shares) - 1) for share in shares.values())

    def lowest_jain(self, weights: Mapping[str, float], *, after_seconds: float = 0.0) -> float:
        """Jain's index in the worst window, from so many seconds on."""
        windows = self.service.windows(weights, self.begin + after_seconds, self.end, WINDOW_SECONDS)
        return min(jain(list(shares.values())) for shares in windows)


def measure_shares(scale: Scale) -> Findings:
    """Two tenants that differ in everything."""
    findings = Findings()
    setup = Setup(weights={ONE: 1.0, OTHER: 1.0}, engine=replace(EngineModel(), kv_cache_tokens=_FEW_TOKENS))
    asks = [(_LONG_PROMPT, _NUM_STREAMS), (_LONG_OUTPUT, _NUM_STREAMS)]
    sides = [_divided(each, asks, _SETTLE_SECONDS + scale.seconds) for each in (setup, first_come(setup))]
    gaps = [each.service.gap(ONE, OTHER, each.begin, each.end) for each in sides]
    bound = vtc_bound(_LONG_PROMPT.num_prompt_tokens, setup.engine.kv_cache_tokens)
    findings.add("service gap", TOKENS, gaps[0], theirs=gaps[1], target=at_most(bound))
    jains = [each.lowest_jain(setup.weights, after_seconds=_SETTLE_SECONDS) for each in sides]
    findings.add("Jain's index, worst 10 s", INDEX, jains[0], theirs=jains[1], target=at_least(_LEAST_JAIN))
    work = [sum(each.service.between(who, each.begin, each.end) for who in (ONE, OTHER)) for each in sides]
    target = at_least(_LEAST_THROUGHPUT)
    findings.add("work done / first come", RATIO, work[0] / work[1], target=target)
    return findings


def measure_weights(scale: Scale) -> Findings:
    """Three tenants that differ in their weights only."""
    weights = {"one": 1.0, "two": 2.0, "four": 4.0}
    asks = [(Ask(name, 128, 32), _NUM_STREAMS) for name in weights]
    ours = _divided(Setup(weights=weights), asks, scale.seconds)
    theirs = _divided(first_come(Setup(weights=weights)), asks, scale.seconds)
    findings = Findings()
    off = [each.deviation(weights) for each in (ours, theirs)]
    title = "weights 1, 2, 4: furthest from its share"
    findings.add(title, SHARE, off[0], theirs=off[1], target=at_most(_MOST_DEVIATION))
    findings.add("Jain's index, worst 10 s", INDEX, ours.lowest_jain(weights), target=at_least(_LEAST_JAIN))
    return findings


def measure_keys(scale: Scale) -> Findings:
    """Sixteen keys against one."""
    weights = {ONE: 1.0, OTHER: 1.0}
    streams = _NUM_STREAMS // _NUM_KEYS
    asks = [(ask, 2 * streams) for ask in with_keys(_PLAIN, _NUM_KEYS)]
    asks.append((Ask(OTHER, _PLAIN.num_prompt_tokens, _PLAIN.num_output_tokens, key="only"), _NUM_STREAMS))
    ours, theirs = (_divided(setup, asks, scale.seconds) for setup in (Setup(weights=weights), _unfair(weights)))
    findings = Findings()
    off = [each.deviation(weights) for each in (ours, theirs)]
    title = "16 keys and 1: furthest from half"
    findings.add(title, SHARE, off[0], theirs=off[1], target=at_most(_MOST_DEVIATION))
    return findings


def _unfair(weights: Mapping[str, float]) -> Setup:
    return first_come(Setup(weights=weights))


def measure_return(scale: Scale) -> Findings:
    """A tenant that comes back."""
    weights = {ONE: 1.0, OTHER: 1.0}
    findings = Findings()
    seconds = scale.seconds / 2

    async def work(server: VirtualServer) -> tuple[Division, float]:
        staying = asyncio.ensure_future(server.backlogged([(_PLAIN, _NUM_STREAMS)], 3 * seconds))
        leaving = [(Ask(OTHER, 128, 32), _NUM_STREAMS)]
        await server.backlogged(leaving, seconds)
        await asyncio.sleep(seconds)
        back_at = server.now()
        await server.backlogged(leaving, seconds)
        await staying
        return Division(server.witness.service, back_at, server.now()), back_at

    ours, back_at = virtually(Setup(weights=weights), work)
    jain_after = jain(list(ours.service.shares(weights, back_at, back_at + WINDOW_SECONDS).values()))
    findings.add("Jain's index, the 10 s after the return", INDEX, jain_after, target=at_least(_LEAST_JAIN))
    findings.add("Jain's index, worst 10 s after it", INDEX, ours.lowest_jain(weights), target=at_least(_LEAST_JAIN))
    return findings


def _divided(setup: Setup, asks: Sequence[tuple[Ask, int]], seconds: float) -> Division:
    async def work(server: VirtualServer) -> Division:
        began = server.now()
        await server.backlogged(asks, _WARM_UP_SECONDS + seconds)
        return Division(server.witness.service, began + _WARM_UP_SECONDS, server.now())

    return virtually(setup, work)
