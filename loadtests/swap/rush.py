"""Row `rush`: 64 requests for three models at once, in a random order, under a budget that holds two of them.

Nobody may be refused. How many engines were started is held against what somebody would need who serves the requests
one after the other, in their order, and knows it in advance (`optimum`); a server that has all of them at once can do
better, since it may let those of one model go together. What it cannot do without is one start for each model.
"""

import time
from dataclasses import dataclass, field

from headrace_server.bench.measures import Measure
from headrace_server.bench.side import SideFailed
from headrace_server.settings.schema import LoadWhen
from loadtests.cache_children import all_of
from loadtests.cache_findings import at_most, first_line
from loadtests.swap.asking import Answer
from loadtests.swap.findings import HEADRACE, Findings, worst
from loadtests.swap.optimum import fewest_loads, random_order
from loadtests.swap.servers import Headrace, headrace
from loadtests.swap.setting import Setting
from loadtests.swap.subjects import MODELS, BenchModel

NUM_REQUESTS = 64
NUM_PLACES = 2

WALL = Measure("wall_seconds", "all answered", "s", digits=1)
LOADS = Measure("num_loads", "engines started", "", digits=0)
FAILED = Measure("num_failed", "requests that failed", "", digits=0)
OPTIMUM, MODELS_ASKED = "optimum", "models"

_MOST_LOADS = 2.0
_ORDER_SEED = 64


@dataclass(slots=True)
class Outcome:
    """What became of the requests: `reasons` has one for each that failed."""

    answers: list[tuple[BenchModel, Answer]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


async def measure_rush(setting: Setting) -> Findings:
    """All orders, each from empty memory. Raises HeadraceError."""
    findings = Findings()
    budget = await setting.budget_for(MODELS, NUM_PLACES)
    with setting.folder() as folder:
        configuration = setting.configuration(MODELS, folder, load=LoadWhen.DEMAND, budget_bytes=budget)
        async with headrace(configuration, folder) as server:
            await _warm_up(setting, server)
            for run in range(setting.num_runs):
                await _one_order(setting, findings, server, run)
    findings.alone("64 requests until all were answered", WALL, HEADRACE)
    findings.alone("requests that failed", FAILED, HEADRACE, at_most(0), judge=worst)
    findings.against("engines started / optimum", LOADS, HEADRACE, OPTIMUM, at_most(_MOST_LOADS), judge=worst)
    findings.against("engines started / models", LOADS, HEADRACE, MODELS_ASKED, judge=worst)
    findings.remarks.append(f"a budget of {budget / 2**20:.0f} MiB, which holds two models")
    return findings


async def _warm_up(setting: Setting, server: Headrace) -> None:
    for model in MODELS:
        setting.answers.check(HEADRACE, model, await server.first_answer(model))


async def _one_order(setting: Setting, findings: Findings, server: Headrace, run: int) -> None:
    by_id = {model.id: model for model in MODELS}
    order = random_order(tuple(by_id), NUM_REQUESTS, seed=_ORDER_SEED + run)
    await server.unload(*MODELS)
    await server.until_resident()
    num_before = len(server.journal.loads())
    began = time.monotonic()
    outcome = await ask_all(server, [by_id[model] for model in order])
    wall = time.monotonic() - began
    for model, found in outcome.answers:
        setting.answers.check(HEADRACE, model, found)
    num_loads, optimum = len(server.journal.loads()) - num_before, fewest_loads(order, NUM_PLACES)
    setting.tell(f"  run {run + 1}: {wall:.1f} s, {num_loads} engines started (optimum {optimum})")
    findings.samples.add_all(HEADRACE, {WALL: wall, LOADS: num_loads, FAILED: len(outcome.reasons)})
    findings.samples.add(LOADS, OPTIMUM, optimum)
    findings.samples.add(LOADS, MODELS_ASKED, len(MODELS))
    findings.remarks.extend(f"run {run + 1}: {reason}" for reason in sorted(set(outcome.reasons)))


async def ask_all(server: Headrace, order: list[BenchModel]) -> Outcome:
    """Send all requests at once, in this order, and wait for what becomes of them. Those that a server has left without
    an answer, because it has ended, have failed like others."""
    outcome = Outcome()

    async def ask(model: BenchModel) -> None:
        try:
            outcome.answers.append((model, await server.answer(model)))
        except SideFailed as error:
            outcome.reasons.append(first_line(error))

    await all_of(map(ask, order))
    return outcome
