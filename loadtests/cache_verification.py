"""Row `verification`: what checking costs, by fetches with and without any hashing, in turn.

A registry serves the same model in two ways: with a pinned index, where each chunk is hashed once and compared before
it is kept, and without, where chunks are hashed as they come and each file once more as a whole.
Without hashing (`cache_unhashed`) the fetch is the same otherwise. Files are compared afterwards on every side.
"""

from pathlib import Path

from headrace_models.fetch.request import FetchRequest
from headrace_server.bench.measures import Measure
from loadtests.cache_fetch import HASHED, fetch
from loadtests.cache_findings import SECONDS, Findings, at_most
from loadtests.cache_setting import Protocol, Setting, link_of, reference_of
from loadtests.origin.remote import RemoteOrigin, origin_process

CHUNKS, FILES, NONE = "chunks", "whole files", "without"
CPU = Measure("cpu_seconds_per_gib", "CPU", "s/GiB", digits=2)

_MIB_PER_SECOND = 200.0
_UNHASHED = ("-P", str(Path(__file__).resolve().with_name("cache_unhashed.py")))
_SIDES = {
    NONE: (_UNHASHED, Protocol.OCI_INDEXED),
    CHUNKS: (HASHED, Protocol.OCI_INDEXED),
    FILES: (HASHED, Protocol.OCI),
}


async def measure_verification(setting: Setting) -> Findings:
    """All sides in turn. Raises HeadraceError."""
    findings, model = Findings(), setting.large()
    with origin_process({model.name: model.directory}, link=link_of(_MIB_PER_SECOND)) as origin:
        await _build_artifacts(setting, origin)
        for run in range(setting.num_runs):
            setting.tell(f"  run {run + 1}")
            for side in _SIDES if run % 2 == 0 else reversed(_SIDES):
                await _fetch(setting, origin, findings, side)
    findings.ratio("chunks hashed / without hashing", SECONDS, CHUNKS, NONE, at_most(1.03))
    findings.ratio("files hashed too / without hashing", SECONDS, FILES, NONE, at_most(1.03))
    for side, title in ((NONE, "without hashing"), (CHUNKS, "chunks hashed"), (FILES, "files hashed too")):
        findings.median(f"{title}: time", SECONDS, side)
        findings.median(f"{title}: CPU", CPU, side)
    findings.remarks.append(f"{model.weight_bytes / 2**20:.0f} MiB in {model.num_shards} shards")
    return findings


async def _build_artifacts(setting: Setting, origin: RemoteOrigin) -> None:
    """The registry makes a tag when it is first asked for, which hashes everything."""
    for protocol in (Protocol.OCI, Protocol.OCI_INDEXED):
        with setting.folder() as cache:
            await fetch(FetchRequest(reference_of(protocol, origin.address, setting.large().name), cache, groups=()))


async def _fetch(setting: Setting, origin: RemoteOrigin, findings: Findings, side: str) -> None:
    program, protocol = _SIDES[side]
    model = setting.large()
    with setting.folder() as cache:
        request = FetchRequest(reference_of(protocol, origin.address, model.name), cache)
        fetched = await fetch(request, program=program)
        model.check_stored(fetched.stored)
    gib = model.weight_bytes / 2**30
    findings.samples.add_all(side, {SECONDS: fetched.seconds, CPU: fetched.cpu_seconds / gib})
