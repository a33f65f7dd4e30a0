"""Row `restart`: SIGKILL to the engine's process, and a request right behind it, which Headrace holds until the next
engine serves.

It is held against starts of the same engine in the same server: the first one, which waits for the imports, and one
that finds them done, as the restart does. That is the stricter of the two.
"""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

from headrace_server.bench.measures import Measure
from headrace_server.bench.process_table import PROC, ProcessEntry, ProcessId
from headrace_server.settings.schema import LoadWhen
from loadtests.cache_findings import at_most
from loadtests.cache_served import WrongResult
from loadtests.swap.findings import HEADRACE, Findings
from loadtests.swap.servers import Headrace, headrace
from loadtests.swap.setting import Setting
from loadtests.swap.subjects import FIRST

RECOVERY = Measure("recovery_seconds", "kill to first token", "s", digits=2)

KILLED, FIRST_START, WARM_START = "after SIGKILL", "first engine start", "engine start, imports done"

_MOST_SHARE = 1.1
_ENGINE_TITLE = b"VLLM::EngineCore"


async def measure_restart(setting: Setting) -> Findings:
    """A server a run. Raises HeadraceError."""
    findings = Findings()
    for run in range(setting.num_runs):
        with setting.folder() as folder:
            configuration = setting.configuration([FIRST], folder, load=LoadWhen.STARTUP)
            async with headrace(configuration, folder) as server:
                figures = await _one_death(setting, server)
        setting.tell(f"  run {run + 1}: {', '.join(f'{side} {value:.2f} s' for side, value in figures.items())}")
        for side, seconds in figures.items():
            findings.samples.add(RECOVERY, side, seconds)
    findings.alone("SIGKILL to first token", RECOVERY, KILLED)
    findings.against("… / first engine start", RECOVERY, KILLED, FIRST_START, at_most(_MOST_SHARE))
    findings.against("… / engine start, imports done", RECOVERY, KILLED, WARM_START, at_most(_MOST_SHARE))
    return findings


async def _one_death(setting: Setting, server: Headrace) -> dict[str, float]:
    setting.answers.check(HEADRACE, FIRST, await server.first_answer(FIRST))
    await server.unload(FIRST)
    await server.load(FIRST)
    setting.answers.check(HEADRACE, FIRST, await server.answer(FIRST))
    await server.until_resident(FIRST)
    pid = engine_process(server.program.processes.entries())
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    found = await server.answer(FIRST)
    setting.answers.check(HEADRACE, FIRST, found)
    loads, deaths = server.journal.loads(), server.journal.deaths()
    if len(loads) != 3 or deaths != [FIRST.id]:
        raise WrongResult(f"one engine should have died and three started: {len(deaths)} have, and {len(loads)}")
    return {
        KILLED: found.first_at - killed_at,
        FIRST_START: loads[0].seconds,
        WARM_START: loads[1].seconds,
    }


def engine_process(entries: Iterable[ProcessEntry]) -> ProcessId:
    """The engine's process among those of a server. Raises WrongResult unless there is one."""
    found = [entry.pid for entry in entries if _title(entry.pid).startswith(_ENGINE_TITLE)]
    if len(found) != 1:
        raise WrongResult(f"there should be one engine process, and there are {len(found)}")
    return found[0]


def _title(pid: ProcessId) -> bytes:
    with suppress(OSError):
        return (PROC / str(pid) / "cmdline").read_bytes()
    return b""
