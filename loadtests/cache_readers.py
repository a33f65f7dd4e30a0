"""Row `readers`: processes that open and read the whole model at the same time, into one cache that is empty before.

Each reader has a fetching child of its own; one of the children fetches and the others look on. Readers begin together,
once all have imported what they need, and hash every tensor. Peers with two processes: imports take them equally long.
"""

import asyncio
import json

from headrace_models.fetch.request import FetchRequest
from headrace_server.bench.measures import Measure
from loadtests.cache_children import ChildFailed, all_of, peer_intake, running
from loadtests.cache_findings import ORIGIN_BYTES, SECONDS, Findings, at_most
from loadtests.cache_setting import Protocol, Setting, link_of, reference_of
from loadtests.origin.remote import RemoteOrigin, origin_process
from loadtests.peers.intake import Intake
from loadtests.peers.running import Errand, Peer

NUMBERS = (1, 2, 4, 8)
READER = ("-m", "loadtests.cache_reader")
SHARE = Measure("shard_bytes_share", "origin bytes / shards", "×", digits=3)

_MIB_PER_SECOND = 100.0
_PEERS = {Peer.HUB: "2 × huggingface_hub", Peer.RUNAI: "2 × runai (S3)"}


def side_of(number: int) -> str:
    """How so many of our readers are called."""
    return f"{number} reader" + "s" * (number > 1)


async def measure_readers(setting: Setting) -> Findings:
    """All numbers of readers in turn, `num_runs` times; each peer once in each run. Raises HeadraceError."""
    findings = Findings()
    with origin_process({setting.model.name: setting.model.directory}, link=link_of(_MIB_PER_SECOND)) as origin:
        for run in range(setting.num_runs):
            for number in NUMBERS if run % 2 == 0 else reversed(NUMBERS):
                setting.tell(f"  {side_of(number)}, run {run + 1}")
                await _read(setting, origin, findings, number)
        if setting.peers is not None:
            for peer in _PEERS:
                await _read_by_peer(setting, origin, findings, peer)
    _add_lines(findings)
    return findings


async def _read(setting: Setting, origin: RemoteOrigin, findings: Findings, number: int) -> None:
    with setting.folder() as cache:
        origin.reset()
        request = FetchRequest(reference_of(Protocol.HTTP, origin.address, setting.model.name), cache, on_demand=True)
        together = asyncio.Barrier(number)
        intakes = await all_of(_reader(request, together) for _ in range(number))
    _note(setting, origin, findings, side_of(number), intakes)


async def _reader(request: FetchRequest, together: asyncio.Barrier) -> Intake:
    async with running(READER) as reader:
        await reader.tell(request.to_json())
        if await reader.next_line() != "ready":
            raise await reader.failure("is not a reader")
        await together.wait()
        await reader.tell("go")
        return Intake(**json.loads(await reader.last_line()))


async def _read_by_peer(setting: Setting, origin: RemoteOrigin, findings: Findings, peer: Peer) -> None:
    if setting.peers is None:
        return
    setting.tell(f"  {_PEERS[peer]}")
    with setting.folder() as scratch:
        origin.reset()
        errand = Errand(origin.url, setting.model.name, scratch, with_digest=True)
        try:
            both = await all_of(peer_intake(peer, errand, setting.peers) for _ in range(2))
        except ChildFailed as error:
            findings.failed(_PEERS[peer], error)
            return
    _note(setting, origin, findings, _PEERS[peer], both)


def _note(setting: Setting, origin: RemoteOrigin, findings: Findings, side: str, intakes: list[Intake]) -> None:
    for intake in intakes:
        setting.model.check_intake(intake)
    sent = origin.stats().body_bytes("*.safetensors")
    figures = {
        ORIGIN_BYTES: sent,
        SHARE: sent / setting.model.weight_bytes,
        SECONDS: max(intake.seconds for intake in intakes),
    }
    findings.samples.add_all(side, figures)


def _add_lines(findings: Findings) -> None:
    sides = [side_of(number) for number in NUMBERS]
    for side in sides:
        findings.worst(f"{side}: bytes / model", SHARE, side, at_most(1.005))
    for side in _PEERS.values():
        findings.worst(f"{side}: bytes / model", SHARE, side)
    for side in (*sides, *_PEERS.values()):
        findings.median(f"{side}: the slowest", SECONDS, side)
