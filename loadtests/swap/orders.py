"""Row `orders`: the same as `rush` on the synthetic engine, in many orders: at once, and one after the other.

One after the other is the harder case: whoever comes next is not known, and each choice of who has to go may be wrong.
Leaving the least recently used one out takes at most twice the optimum's loads with two places (D. D. Sleator and R. E.
Tarjan, "Amortized efficiency of list update and paging rules", CACM 28(2), 1985).
"""

from dataclasses import dataclass
from pathlib import Path

from headrace_server.settings.schema import EngineKind, LoadWhen
from loadtests.cache_findings import at_most
from loadtests.swap.findings import HEADRACE, Findings, worst
from loadtests.swap.optimum import fewest_loads, random_order
from loadtests.swap.rush import FAILED, LOADS, MODELS_ASKED, NUM_PLACES, NUM_REQUESTS, Outcome, ask_all
from loadtests.swap.servers import Headrace, headrace
from loadtests.swap.setting import Setting
from loadtests.swap.subjects import BenchModel, configuration

NUM_ORDERS = 20
AT_ONCE, IN_TURN = "at once", "one after the other"

_MODEL_BYTES = 100 * 2**20
_LOAD_SECONDS = 0.02
_ORDER_SEED = 1985
_MOST_LOADS = 2.0
MODELS = tuple(BenchModel(f"synthetic-{name}", "") for name in "abc")


@dataclass(frozen=True, slots=True)
class _Way:
    """How requests come, and the sides that its loads and the optimum's are kept under."""

    name: str

    @property
    def ours(self) -> str:
        return f"{HEADRACE}, {self.name}"

    @property
    def optimum(self) -> str:
        return f"optimum, {self.name}"


WAYS = (_Way(AT_ONCE), _Way(IN_TURN))


async def measure_orders(setting: Setting) -> Findings:
    """All orders, in both ways, each from empty memory. Raises HeadraceError."""
    findings = Findings()
    with setting.folder() as folder:
        async with headrace(_configuration(folder, setting.cache), folder) as server:
            await server.until_alive()
            for number in range(NUM_ORDERS):
                for way in WAYS:
                    await _one_order(findings, server, way, number)
    for way in WAYS:
        findings.alone(f"{way.name}: requests that failed", FAILED, way.ours, at_most(0), judge=worst)
        title = f"{way.name}: engines started / optimum"
        findings.against(title, LOADS, way.ours, way.optimum, at_most(_MOST_LOADS), judge=worst)
    findings.against(f"{AT_ONCE}: engines started / models", LOADS, WAYS[0].ours, MODELS_ASKED, judge=worst)
    return findings


def _configuration(folder: Path, cache: Path) -> str:
    synthetic = {"load_seconds": _LOAD_SECONDS, "memory_bytes": _MODEL_BYTES}
    models = [
        {"id": model.id, "engine": EngineKind.SYNTHETIC.value, "load": LoadWhen.DEMAND.value, "synthetic": synthetic}
        for model in MODELS
    ]
    return configuration(models, folder, cache=cache, budget_bytes=NUM_PLACES * _MODEL_BYTES)


async def _one_order(findings: Findings, server: Headrace, way: _Way, number: int) -> None:
    by_id = {model.id: model for model in MODELS}
    order = random_order(tuple(by_id), NUM_REQUESTS, seed=_ORDER_SEED + number)
    await server.unload(*MODELS)
    await server.until_resident()
    num_before = len(server.journal.loads())
    asked = [by_id[model] for model in order]
    outcome = await ask_all(server, asked) if way.name == AT_ONCE else await _ask_in_turn(server, asked)
    num_loads = len(server.journal.loads()) - num_before
    findings.samples.add_all(way.ours, {LOADS: num_loads, FAILED: len(outcome.reasons)})
    findings.samples.add(LOADS, way.optimum, fewest_loads(order, NUM_PLACES))
    findings.samples.add(LOADS, MODELS_ASKED, len(MODELS))
    findings.remarks.extend(f"{way.name}, order {number + 1}: {reason}" for reason in sorted(set(outcome.reasons)))


async def _ask_in_turn(server: Headrace, order: list[BenchModel]) -> Outcome:
    whole = Outcome()
    for model in order:
        part = await ask_all(server, [model])
        whole.answers += part.answers
        whole.reasons += part.reasons
    return whole
