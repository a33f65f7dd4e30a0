"""Row `kill`: a fetch is killed with SIGKILL at 25, 50 and 75 per cent, and then goes on to its end.

What is killed is the fetching child alone, which its parent starts again, or the child and its parent together, after
which somebody asks again. The moment is told by the bytes that the origin has sent, for the peer too. What the origin
sent in all, less what the model has, came twice. Everything that is left on disk must be there after a fetch that
nobody disturbed as well, and the files must have the digests of the origin's.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from headrace_models.fetch.events import Completed, Started, from_json
from headrace_models.fetch.request import FetchRequest
from headrace_server.bench.measures import Measure
from loadtests.cache_children import Child, ChildFailed, ended_with_us, peer_intake, running
from loadtests.cache_fetch import fetch
from loadtests.cache_findings import MIB, SECONDS, Findings, at_most
from loadtests.cache_served import allocated_bytes, files_below
from loadtests.cache_setting import Protocol, Setting, link_of, reference_of
from loadtests.origin.remote import RemoteOrigin, origin_process
from loadtests.peers.running import Errand, Peer, start_peer

FRACTIONS = (0.25, 0.5, 0.75)
PARENT = ("-m", "loadtests.cache_parent")
HUB = "huggingface_hub"

REFETCHED = Measure("refetched_bytes", "fetched twice", "MiB", 1 / MIB, 1)
STRAY = Measure("stray_bytes", "files left over", "MiB", 1 / MIB, 1)
SURPLUS = Measure("allocated_beyond_undisturbed_bytes", "du beyond undisturbed", "KiB", 1 / 1024, 1)
SENT_BEFORE = Measure("sent_before_kill_bytes", "sent before the kill", "MiB", 1 / MIB, 1)

_MIB_PER_SECOND = 50.0
_LOOK_SECONDS = 0.02
_PEER_SECONDS = 60.0


class Victim(StrEnum):
    """What is killed."""

    CHILD = "child killed"
    BOTH = "both killed"


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """What a fetch that nobody disturbs leaves: sizes of files by path, and what they take on disk."""

    files: dict[str, int]
    allocated: int
    needed_bytes: int


async def measure_kill(setting: Setting) -> Findings:
    """Every victim at every fraction, and the peer. Raises HeadraceError."""
    findings = Findings()
    with origin_process({setting.model.name: setting.model.directory}, link=link_of(_MIB_PER_SECOND)) as origin:
        clean = await _undisturbed(setting, origin)
        for fraction in FRACTIONS:
            for victim in Victim:
                await _kill_ours(setting, origin, findings, (victim, fraction, clean))
        if setting.peers is not None:
            await _kill_peers(setting, origin, findings, setting.peers)
    _add_lines(findings, clean)
    return findings


async def _undisturbed(setting: Setting, origin: RemoteOrigin) -> Undisturbed:
    with setting.folder() as cache:
        fetched = await fetch(_request(setting, origin, cache))
        setting.model.check_stored(fetched.stored)
        needed = setting.model.weight_bytes + setting.model.skeleton_bytes(fetched.stored)
        return Undisturbed(files_below(cache), allocated_bytes(cache), needed)


def _request(setting: Setting, origin: RemoteOrigin, cache: Path) -> FetchRequest:
    return FetchRequest(reference_of(Protocol.HTTP, origin.address, setting.model.name), cache)


async def _kill_ours(
    setting: Setting, origin: RemoteOrigin, findings: Findings, case: tuple[Victim, float, Undisturbed]
) -> None:
    victim, fraction, clean = case
    setting.tell(f"  {victim} at {fraction:.0%}")
    with setting.folder() as cache:
        origin.reset()
        request = _request(setting, origin, cache)
        async with running(PARENT) as parent:
            await parent.tell(request.to_json())
            child = await _pid_of_child(parent)
            sent = await _until_sent(origin, fraction * setting.model.weight_bytes)
            began = time.monotonic()
            if victim is Victim.BOTH:
                # Held first: it must not start another child before its own end.
                for pid, number in (
                    (parent.pid, signal.SIGSTOP),
                    (child, signal.SIGKILL),
                    (parent.pid, signal.SIGKILL),
                ):
                    os.kill(pid, number)
                await parent.ended()
                await fetch(request)
            else:
                os.kill(child, signal.SIGKILL)
                await _until_complete(parent)
        seconds = time.monotonic() - began
        (stored,) = (path.parent for path in cache.glob("models/*/index.json"))
        setting.model.check_stored(stored)
        findings.samples.add_all(victim, {SENT_BEFORE: sent, SECONDS: seconds, **_figures(origin, clean, cache)})


def _figures(origin: RemoteOrigin, clean: Undisturbed, folder: Path) -> dict[Measure, float]:
    """What came twice, and what lies in `folder` that would not have been there."""
    return {
        REFETCHED: origin.stats().body_bytes() - clean.needed_bytes,
        STRAY: sum(size for path, size in files_below(folder).items() if path not in clean.files),
        SURPLUS: allocated_bytes(folder) - clean.allocated,
    }


async def _pid_of_child(parent: Child) -> int:
    async for line in parent.lines():
        if isinstance(event := from_json(line), Started):
            return event.pid
    raise await parent.failure("did not start a fetch")


async def _until_complete(parent: Child) -> None:
    async for line in parent.lines():
        if isinstance(from_json(line), Completed):
            return
    raise await parent.failure("did not get over the end of its child")


async def _until_sent(origin: RemoteOrigin, num_bytes: float) -> int:
    """Wait until the origin has sent so much of weights; what it has sent of everything by then."""
    while origin.stats().body_bytes("*.safetensors") < num_bytes:  # noqa: ASYNC110 - another process counts
        await asyncio.sleep(_LOOK_SECONDS)
    return origin.stats().body_bytes()


async def _kill_peers(setting: Setting, origin: RemoteOrigin, findings: Findings, folder: Path) -> None:
    try:
        clean = await _undisturbed_peer(setting, origin, folder)
        for fraction in FRACTIONS:
            await _kill_hub(setting, origin, findings, (folder, fraction, clean))
    except ChildFailed as error:
        findings.failed(HUB, error)


async def _undisturbed_peer(setting: Setting, origin: RemoteOrigin, folder: Path) -> Undisturbed:
    with setting.folder() as scratch:
        origin.reset()
        errand = Errand(origin.url, setting.model.name, scratch, with_digest=True)
        setting.model.check_intake(await peer_intake(Peer.HUB, errand, folder))
        return Undisturbed(files_below(scratch), allocated_bytes(scratch), origin.stats().body_bytes())


async def _kill_hub(
    setting: Setting, origin: RemoteOrigin, findings: Findings, case: tuple[Path, float, Undisturbed]
) -> None:
    folder, fraction, clean = case
    setting.tell(f"  {HUB} killed at {fraction:.0%}")
    with setting.folder() as scratch:
        origin.reset()
        errand = Errand(origin.url, setting.model.name, scratch, with_digest=True)
        process = start_peer(Peer.HUB, errand, folder=folder)
        try:
            with ended_with_us(process.pid):
                async with asyncio.timeout(_PEER_SECONDS):
                    sent = await _until_sent(origin, fraction * setting.model.weight_bytes)
        except TimeoutError as error:
            raise ChildFailed(f"{HUB} does not fetch") from error
        finally:
            process.kill()
            process.communicate()
        began = time.monotonic()
        intake = await peer_intake(Peer.HUB, errand, folder)
        seconds = time.monotonic() - began
        setting.model.check_intake(intake)
        findings.samples.add_all(HUB, {SENT_BEFORE: sent, SECONDS: seconds, **_figures(origin, clean, scratch)})


def _add_lines(findings: Findings, clean: Undisturbed) -> None:
    most = at_most(0.05 * clean.needed_bytes + 8 * MIB)
    for victim in Victim:
        findings.worst(f"{victim}: fetched twice", REFETCHED, victim, most)
        findings.worst(f"{victim}: left over", STRAY, victim, at_most(0))
    findings.worst(f"{HUB}: fetched twice", REFETCHED, HUB)
    findings.worst(f"{HUB}: left over", STRAY, HUB)
    findings.remarks.append(
        f"undisturbed: {clean.needed_bytes / MIB:.1f} MiB needed, du {clean.allocated / MIB:.1f} MiB; killed at"
        f" {', '.join(f'{fraction:.0%}' for fraction in FRACTIONS)} of a fetch at {_MIB_PER_SECOND:g} MiB/s, and the"
        f" worst of them is shown and judged; du afterwards beyond that: {', '.join(_surpluses(findings))}"
    )


def _surpluses(findings: Findings) -> Iterator[str]:
    for side in (*Victim, HUB):
        if values := findings.samples.of(SURPLUS, side):
            yield f"{max(values) / MIB:.1f} MiB ({side})"
