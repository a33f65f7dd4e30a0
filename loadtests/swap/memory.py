"""Row `memory`: what the pool thinks that an engine will take, what it then measures, and what is seen from outside.

An estimate decides whether a model may start, so it should be near what the engine takes, and not below it. Seen from
outside is how much more PSS the server's process tree has since the model is there, which leaves out the engine's share
of what it has in common with the process that it was forked from: that was there before it.
"""

from headrace_server.bench.measures import Measure
from loadtests.swap.findings import MIB, Findings
from loadtests.swap.setting import Setting
from loadtests.swap.subjects import MODELS

MEMORY = Measure("memory_bytes", "memory", "MiB", 1 / MIB, 0)


async def measure_memory(setting: Setting) -> Findings:
    """Every model, once a server; those that other rows are to ask for as well. Raises HeadraceError."""
    findings = Findings()
    for run in range(setting.num_runs):
        for found in await (setting.footprints() if run == 0 else setting.weigh()):
            sides = {"estimated": found.estimated_bytes, "measured": found.measured_bytes, "seen": found.seen_bytes}
            setting.tell(f"  {found.model}: {', '.join(f'{k} {v / MIB:.0f} MiB' for k, v in sides.items())}")
            for name, value in sides.items():
                findings.samples.add(MEMORY, f"{found.model}, {name}", value)
    for model in MODELS:
        estimated, measured, seen = (f"{model.id}, {name}" for name in ("estimated", "measured", "seen"))
        findings.against(f"{model.id}: estimated / measured", MEMORY, estimated, measured)
        findings.against(f"{model.id}: measured / from outside", MEMORY, measured, seen)
    return findings
