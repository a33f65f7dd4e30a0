"""Row `swap`: one model, another, and the first one again, under a budget that holds one and a half of them.

What stays of a model is its beginning, so the return fetches about half. The budget is looked at from outside all the
while, as `du` counts; and no more is evicted than has to go.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace_models.fetch.request import FetchRequest
from headrace_models.store.model_store import ModelStore
from headrace_server.bench.measures import Measure
from loadtests.cache_fetch import fetch
from loadtests.cache_findings import MIB, ORIGIN_BYTES, SECONDS, Findings, at_most
from loadtests.cache_served import ServedModel, WrongResult, allocated_bytes
from loadtests.cache_setting import Protocol, Setting, link_of, reference_of
from loadtests.origin.remote import RemoteOrigin, origin_process

FIRST, OTHER, RETURN = "first fetch", "the other", "return"
SHARE = Measure("return_bytes_share", "origin bytes / model", "×", digits=3)
OVER = Measure("peak_share_of_budget", "peak / budget", "×", digits=3)
LOST = Measure("evicted_beyond_need_bytes", "evicted beyond need", "MiB", 1 / MIB, 1)

_MIB_PER_SECOND = 100.0
_LOOK_SECONDS = 0.05
# A model is evicted by whole chunks, of 1 MiB at most, and its directory has indexes and maps beside the shards.
_SLACK_BYTES = 4 * MIB


@dataclass(slots=True)
class Peak:
    """The most that was seen on disk."""

    allocated_bytes: int = 0


async def measure_swap(setting: Setting) -> Findings:
    """The whole round, `num_runs` times. Raises HeadraceError."""
    findings, models = Findings(), setting.swapped()
    with origin_process({model.name: model.directory for model in models}, link=link_of(_MIB_PER_SECOND)) as origin:
        for run in range(setting.num_runs):
            setting.tell(f"  run {run + 1}")
            await _round(setting, origin, findings, models)
    findings.median("first fetch of a model", SECONDS, FIRST)
    findings.median("return to it", SECONDS, RETURN)
    findings.worst("return: origin bytes / model", SHARE, RETURN, at_most(0.55))
    findings.worst("evicted beyond need", LOST, RETURN, at_most(_SLACK_BYTES))
    findings.worst("peak on disk / budget", OVER, RETURN, at_most(1.0))
    findings.remarks.append(
        "no peer has a bound: huggingface_hub keeps both models whole and fetches nothing again, the others keep"
        " nothing"
    )
    return findings


async def _round(
    setting: Setting, origin: RemoteOrigin, findings: Findings, models: tuple[ServedModel, ServedModel]
) -> None:
    first, other = models
    budget, peak = first.weight_bytes * 3 // 2, Peak()
    with setting.folder() as cache:
        async with _watching(cache / "models", peak):
            for side, model in ((FIRST, first), (OTHER, other), (RETURN, first)):
                origin.reset()
                reference = reference_of(Protocol.HTTP, origin.address, model.name)
                fetched = await fetch(FetchRequest(reference, cache, max_bytes=budget))
                model.check_stored(fetched.stored)
                sent = origin.stats().body_bytes("*.safetensors")
                findings.samples.add_all(side, {SECONDS: fetched.seconds, ORIGIN_BYTES: sent})
        kept = _present_bytes(cache, other, origin)
    needed = first.weight_bytes + other.weight_bytes - budget
    figures = {
        SHARE: sent / first.weight_bytes,
        OVER: peak.allocated_bytes / budget,
        LOST: max(0, other.weight_bytes - kept - needed),
    }
    findings.samples.add_all(RETURN, figures)


def _present_bytes(cache: Path, model: ServedModel, origin: RemoteOrigin) -> int:
    stored = ModelStore(cache).find(reference_of(Protocol.HTTP, origin.address, model.name))
    if stored is None:
        raise WrongResult(f"{model.name} was evicted as a whole")
    return stored.status().present_bytes


@asynccontextmanager
async def _watching(folder: Path, peak: Peak) -> AsyncIterator[None]:
    async def look() -> None:
        while True:
            peak.allocated_bytes = max(peak.allocated_bytes, allocated_bytes(folder))
            await asyncio.sleep(_LOOK_SECONDS)

    task = asyncio.ensure_future(look())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
