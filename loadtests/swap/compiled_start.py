"""Row `compiled`: an engine that compiles its model, started with an empty compile cache and once more with what the
first start has left there. Both starts are of a new server, so both import everything.

A first start takes more than a minute, so there is one pair, however many runs are asked for.
"""

import shutil
from pathlib import Path

from headrace_server.settings.schema import LoadWhen
from loadtests.cache_findings import at_most
from loadtests.cache_served import WrongResult, allocated_bytes
from loadtests.swap.findings import ENGINE_START, HEADRACE, Findings
from loadtests.swap.journal import only_load
from loadtests.swap.servers import headrace
from loadtests.swap.setting import Setting
from loadtests.swap.subjects import FIRST, BenchModel

EMPTY, KEPT = "empty compile cache", "compile cache kept"

_MOST_SHARE = 0.6
_START_SECONDS = 400.0
COMPILED = BenchModel("smollm2-compiled", FIRST.source).with_arguments(enforce_eager=False)


async def measure_compiled(setting: Setting) -> Findings:
    """One pair of starts. Raises HeadraceError."""
    findings, kept = Findings(), setting.cache / "compiled"
    shutil.rmtree(kept, ignore_errors=True)
    for side in (EMPTY, KEPT):
        findings.samples.add(ENGINE_START, side, await _engine_start(setting, side))
        check_kept(kept)
    findings.alone("engine start, empty compile cache", ENGINE_START, EMPTY)
    findings.against("cache kept / empty", ENGINE_START, KEPT, EMPTY, at_most(_MOST_SHARE))
    findings.remarks.append(f"the compile cache takes {allocated_bytes(kept) / 2**20:.0f} MiB")
    return findings


async def _engine_start(setting: Setting, side: str) -> float:
    with setting.folder() as folder:
        configuration = setting.configuration([COMPILED], folder, load=LoadWhen.STARTUP)
        async with headrace(configuration, folder) as server:
            found = await server.first_answer(COMPILED, seconds=_START_SECONDS)
            load = only_load(server.journal.loads(), COMPILED.id)
    setting.answers.check(f"{HEADRACE}, {side}", COMPILED, found)
    setting.tell(f"  {side}: {load.seconds:.1f} s")
    return load.seconds


def check_kept(kept: Path) -> None:
    """Raises WrongResult where nothing was kept: then the second start would not be another one than the first."""
    if not any(path.is_file() for path in kept.rglob("*")):
        raise WrongResult("the start has left nothing in the compile cache")
