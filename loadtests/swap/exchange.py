"""Row `swap`: a request for a model that is not in memory, under a budget that holds one, while another one is idle.

vLLM's own server serves one model a process, so a proxy in front of it (llama-swap and others work like this) ends it
and starts another one. That is done here without the proxy, by the same signal and with no pause. Both sides go to and
fro between the same two models; whoever has no turn is stopped with all of its processes.
"""

from headrace_server.bench.measures import Measure
from headrace_server.bench.turns import Turns
from headrace_server.settings.schema import LoadWhen
from loadtests.cache_findings import at_most
from loadtests.swap.findings import ENGINE_START, HEADRACE, VLLM, Findings
from loadtests.swap.journal import only_load
from loadtests.swap.servers import Headrace, RestartedVllm, headrace
from loadtests.swap.setting import Setting
from loadtests.swap.subjects import FIRST, OTHER, BenchModel

SWAP = Measure("swap_seconds", "request to first token", "s", digits=2)
STOP = Measure("stop_seconds", "end of the old server", "s", digits=2)

_MOST_SHARE = 0.15


async def measure_swap(setting: Setting) -> Findings:
    """`num_runs` swaps in each direction. Raises HeadraceError."""
    findings = Findings()
    budget = await setting.budget_for((FIRST, OTHER), 1)
    with setting.folder() as folder:
        configuration = setting.configuration((FIRST, OTHER), folder, load=LoadWhen.DEMAND, budget_bytes=budget)
        with Turns() as turns:
            async with (
                headrace(configuration, folder) as ours,
                RestartedVllm(setting.engine_lines, folder, turns) as theirs,
            ):
                turns.add(HEADRACE, ours.program.processes)
                try:
                    await _Swapping(setting, findings, turns, ours, theirs).run()
                finally:
                    turns.remove(HEADRACE)
    _add_lines(findings)
    findings.remarks.append(f"a budget of {budget / 2**20:.0f} MiB, which holds one model")
    return findings


class _Swapping:
    """Both sides, to and fro."""

    def __init__(
        self, setting: Setting, findings: Findings, turns: Turns, ours: Headrace, theirs: RestartedVllm
    ) -> None:
        self._setting = setting
        self._findings = findings
        self._turns = turns
        self._ours = ours
        self._theirs = theirs

    async def run(self) -> None:
        setting = self._setting
        sides = (HEADRACE, VLLM) if setting.with_peers else (HEADRACE,)
        setting.answers.check(HEADRACE, FIRST, await self._ours.first_answer(FIRST))
        await self._ours.until_resident(FIRST)
        if setting.with_peers:
            await self._turns.give(VLLM)
            await self._theirs.swap(FIRST)
        for number in range(2 * setting.num_runs):
            model = FIRST if number % 2 else OTHER
            for side in sides if number % 2 == 0 else reversed(sides):
                seconds = await (self._swapped(model) if side == HEADRACE else self._restarted(model))
                setting.tell(f"  to {model.id}, {side}: {seconds:.2f} s")
                self._findings.samples.add(SWAP, _way(side, model), seconds)
                self._findings.samples.add(SWAP, side, seconds)

    async def _swapped(self, model: BenchModel) -> float:
        await self._turns.give(HEADRACE)
        await self._ours.until_resident(FIRST if model is OTHER else OTHER)
        num_loads = len(self._ours.journal.loads())
        found = await self._ours.answer(model)
        await self._ours.until_resident(model)
        self._setting.answers.check(HEADRACE, model, found)
        load = only_load(self._ours.journal.loads()[num_loads:], model.id)
        self._findings.samples.add(ENGINE_START, HEADRACE, load.seconds)
        return found.seconds

    async def _restarted(self, model: BenchModel) -> float:
        await self._turns.give(VLLM)
        seconds, found = await self._theirs.swap(model)
        self._setting.answers.check(VLLM, model, found)
        self._findings.samples.add(STOP, VLLM, self._theirs.stop_seconds)
        return seconds


def _way(side: str, model: BenchModel) -> str:
    return f"{side}, to {model.id}"


def _add_lines(findings: Findings) -> None:
    findings.alone("request to first token", SWAP, HEADRACE)
    findings.against("… / vLLM's own server restarted", SWAP, HEADRACE, VLLM, at_most(_MOST_SHARE))
    for model in (OTHER, FIRST):
        findings.against(f"   to {model.id}", SWAP, _way(HEADRACE, model), _way(VLLM, model))
    findings.alone("engine start within it", ENGINE_START, HEADRACE)
    findings.alone("old vLLM's end within its restart", STOP, VLLM)
