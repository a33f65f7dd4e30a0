"""Row `second-start`: all tensors out of a complete store, against safetensors' own mapping of the same files.

Everything is in the page cache. Each side is a process of its own, in turn; what is compared is the median of the loads
of a process, all of which are in the document. Of a small model and of a larger one with as many tensors, since what a
tensor costs whatever its size weighs less there.
"""

import json
from pathlib import Path

from headrace_models.fetch.request import FetchRequest
from headrace_server.bench.measures import Measure
from headrace_server.bench.stats import median
from loadtests.cache_children import running
from loadtests.cache_fetch import fetch
from loadtests.cache_findings import MIB, Findings, at_most
from loadtests.cache_loading import Loading
from loadtests.cache_served import ServedModel, WrongResult
from loadtests.cache_setting import Protocol, Setting, reference_of
from loadtests.origin.remote import origin_process

OURS, THEIRS = "store", "safetensors"
LOAD = Measure("load_seconds", "load", "ms", 1e3, 1)
EACH_LOAD = Measure("each_load_seconds", "each load", "ms", 1e3, 1)
EXTRA = Measure("extra_anonymous_bytes", "beside the tensors", "MiB", 1 / MIB, 1)


async def measure_second_start(setting: Setting) -> Findings:
    """Pairs of processes in turn. Raises HeadraceError."""
    findings = Findings()
    for model in (setting.model, setting.large()):
        size = f"{model.weight_bytes / MIB:.0f} MiB"
        await _pairs(setting, findings, size, model)
        ours, theirs = _side(size, OURS), _side(size, THEIRS)
        findings.ratio(f"{size}: time / safetensors' mmap", LOAD, ours, theirs, at_most(1.1))
        findings.median(f"{size}: from the store", LOAD, ours)
        findings.median(f"{size}: safetensors' mmap", LOAD, theirs)
        findings.worst(f"{size}: memory beside tensors", EXTRA, ours, at_most(64 * MIB))
    return findings


async def _pairs(setting: Setting, findings: Findings, size: str, model: ServedModel) -> None:
    with setting.folder() as cache:
        with origin_process({model.name: model.directory}) as origin:
            fetched = await fetch(FetchRequest(reference_of(Protocol.HTTP, origin.address, model.name), cache))
        model.check_stored(fetched.stored)
        for pair in range(setting.num_runs):
            setting.tell(f"  {size}, pair {pair + 1}")
            for side in (OURS, THEIRS) if pair % 2 == 0 else (THEIRS, OURS):
                found = await _load(model, side, (cache, fetched.stored.name))
                _note(findings, _side(size, side), found)


def _side(size: str, side: str) -> str:
    return f"{side}, {size}"


async def _load(model: ServedModel, side: str, place: tuple[Path, str]) -> Loading:
    cache, key = place
    async with running(("-m", "loadtests.cache_loading", side, str(cache), key)) as loader:
        found = Loading(**json.loads(await loader.last_line()))
    if (found.num_tensors, found.digest) != (model.num_tensors, model.contents):
        raise WrongResult(f"{side} loaded something else")
    return found


def _note(findings: Findings, side: str, found: Loading) -> None:
    findings.samples.add_all(side, {LOAD: median(found.seconds), EXTRA: found.extra_anonymous_bytes})
    for seconds in found.seconds:
        findings.samples.add(EACH_LOAD, side, seconds)
