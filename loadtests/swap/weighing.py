"""Measures what each model takes of memory: one after the other in one server, each loaded alone and asked once.

The first load counts for nothing: with it comes what all engines share.
"""

from pathlib import Path

from headrace_server.bench.processes import ServerProcesses
from loadtests.cache_served import WrongResult
from loadtests.swap.asking import Answers
from loadtests.swap.findings import HEADRACE
from loadtests.swap.footprints import Footprint
from loadtests.swap.journal import only_load
from loadtests.swap.process_memory import pss_bytes
from loadtests.swap.servers import Headrace, headrace
from loadtests.swap.subjects import MODELS, BenchModel


async def weigh(configuration: str, folder: Path, answers: Answers) -> list[Footprint]:
    """The footprints of all models. Raises HeadraceError."""
    async with headrace(configuration, folder) as server:
        first = MODELS[0]
        answers.check(HEADRACE, first, await server.first_answer(first))
        await server.unload(first)
        return [await _footprint(server, model, answers) for model in MODELS]


async def _footprint(server: Headrace, model: BenchModel, answers: Answers) -> Footprint:
    processes: ServerProcesses = server.program.processes
    num_loads = len(server.journal.loads())
    before = pss_bytes(processes.entries())
    answers.check(HEADRACE, model, await server.answer(model))
    seen = pss_bytes(processes.entries()) - before
    await server.until_resident(model)
    measured = (await server.residents()).models[model.id].memory_bytes
    load = only_load(server.journal.loads()[num_loads:], model.id)
    if measured is None:
        raise WrongResult(f"{model.id} has left while it was measured")
    await server.unload(model)
    return Footprint(model.id, load.estimated_bytes, measured, seen)
