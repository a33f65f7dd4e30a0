"""Row `cold-start`: from the start of a process to the first streamed token, ours and vLLM's own server.

The model has been prepared and is in the page cache, as are the libraries: one start of each side before the others
counts for nothing. Starts take turns: A B, B A.
"""

from headrace_server.settings.schema import LoadWhen
from loadtests.cache_findings import at_most
from loadtests.swap.asking import Answer, first_answer
from loadtests.swap.findings import FIRST_TOKEN, HEADRACE, VLLM, Findings
from loadtests.swap.servers import headrace, vllm
from loadtests.swap.setting import Setting
from loadtests.swap.subjects import FIRST


async def measure_cold_start(setting: Setting) -> Findings:
    """All starts. Raises HeadraceError."""
    findings = Findings()
    sides = (HEADRACE, VLLM) if setting.with_peers else (HEADRACE,)
    setting.tell("  one start of each that does not count")
    for side in sides:
        await _started(setting, side)
    for run in range(setting.num_runs):
        for side in sides if run % 2 == 0 else reversed(sides):
            seconds = await _started(setting, side)
            setting.tell(f"  run {run + 1}, {side}: {seconds:.2f} s")
            findings.samples.add(FIRST_TOKEN, side, seconds)
    target = at_most(0.35)
    findings.alone("process start to first token", FIRST_TOKEN, HEADRACE)
    findings.against("… / vLLM's own server", FIRST_TOKEN, HEADRACE, VLLM, target)
    return findings


async def _started(setting: Setting, side: str) -> float:
    with setting.folder() as folder:
        if side == HEADRACE:
            configuration = setting.configuration([FIRST], folder, load=LoadWhen.STARTUP)
            async with headrace(configuration, folder) as server:
                launched_at, found = server.program.launched_at, await server.first_answer(FIRST)
        else:
            async with vllm(setting.engine_lines[FIRST.id], folder) as program:
                launched_at, found = program.launched_at, await first_answer(program, FIRST)
    setting.answers.check(side, FIRST, found)
    return _since(launched_at, found)


def _since(launched_at: float, found: Answer) -> float:
    return found.first_at - launched_at
