"""Row `fetch`: the model into memory, tensor by tensor, at 50 MiB/s and 20 ms: ours by every protocol, and the peers.

All sides take turns, each in a process of its own that has imported everything before its clock starts; one byte in
each page is read and every tensor is hashed, as the same code does it for all. The second run of a side finds what the
first one left; those that keep nothing have one. Ours by other protocols than HTTP, where the same is done with other
requests, run once for each three runs. A real registry, where there is one, is not behind the origin's link: there our
own limit is the link.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from headrace_models.fetch.request import FetchRequest
from headrace_server.bench.measures import Measure
from loadtests.cache_children import ChildFailed, our_environment, peer_intake, running
from loadtests.cache_findings import FIRST_TENSOR, ORIGIN_BYTES, SECONDS, Findings
from loadtests.cache_registry import RegistryFailed, registry_with
from loadtests.cache_served import ServedModel
from loadtests.cache_setting import MIB, Protocol, Setting, link_of, reference_of
from loadtests.origin.remote import RemoteOrigin, origin_process
from loadtests.peers.intake import Intake
from loadtests.peers.running import Errand, Peer
from loadtests.peers.tensorizer_peer import serialize

AGAIN = Measure("second_run_seconds", "second run", "s", digits=2)
AGAIN_BYTES = Measure("second_run_origin_bytes", "second run", "MiB", 1 / MIB, 2)
REAL_REGISTRY = "oci, docker-registry"
OUR_TITLES = (Protocol.HTTP, Protocol.OCI, REAL_REGISTRY, Protocol.S3, Protocol.HF)
PEER_TITLES = {Peer.HUB: "huggingface_hub", Peer.RUNAI: "runai (S3)", Peer.TENSORIZER: "tensorizer"}

_MIB_PER_SECOND = 50.0
_READER = ("-m", "loadtests.cache_reader", "--as-torch")
_TENSORIZED = "acme/tensorized"


@dataclass(frozen=True, slots=True)
class Side:
    """Who fetches: ours by a reference, or a peer. `bytes_per_second` where the link is not the origin's."""

    title: str
    reference: str | None = None
    peer: Peer | None = None
    bytes_per_second: float | None = None

    def is_due(self, run: int) -> bool:
        """Whether it takes part in this run."""
        return self.peer is not None or self.title == Protocol.HTTP or run % 3 == 0

    def is_due_again(self, run: int) -> bool:
        """Whether it has a second run in this one."""
        return self.peer in (None, Peer.HUB) or run == 0


@dataclass(frozen=True, slots=True)
class Place:
    """From where, and what."""

    origin: RemoteOrigin
    model: ServedModel
    peers: Path | None


async def measure_fetching(setting: Setting) -> Findings:
    """All sides in turn, `num_runs` times, each twice. Raises HeadraceError."""
    findings, model = Findings(), setting.model
    with ExitStack() as stack:
        served = {model.name: model.directory}
        if setting.peers is not None:
            served[_TENSORIZED] = serialize(model.directory, setting.scratch / "tensorized", folder=setting.peers)
        origin = stack.enter_context(origin_process(served, link=link_of(_MIB_PER_SECOND)))
        sides = list(_sides(setting, origin, _real_registry(setting, stack, findings)))
        place = Place(origin, model, setting.peers)
        for run in range(setting.num_runs):
            for side in sides if run % 2 == 0 else reversed(sides):
                if side.is_due(run):
                    setting.tell(f"  {side.title}, run {run + 1}")
                    await _measure(setting, place, findings, (side, run))
    _add_lines(findings, [side.title for side in sides])
    return findings


def _real_registry(setting: Setting, stack: ExitStack, findings: Findings) -> str | None:
    """The address of one that has the model; None, and a remark, where there is none."""
    try:
        folder = stack.enter_context(setting.folder())
        return stack.enter_context(registry_with(setting.model, folder))
    except RegistryFailed as error:
        findings.failed(REAL_REGISTRY, error)
        return None


def _sides(setting: Setting, origin: RemoteOrigin, registry: str | None) -> Iterator[Side]:
    name = setting.model.name
    for protocol in (Protocol.HTTP, Protocol.OCI, Protocol.S3, Protocol.HF):
        yield Side(protocol, reference_of(protocol, origin.address, name))
    if registry is not None:
        reference = reference_of(Protocol.OCI, registry, name)
        yield Side(REAL_REGISTRY, reference, bytes_per_second=_MIB_PER_SECOND * MIB)
    if setting.peers is not None:
        for peer, title in PEER_TITLES.items():
            yield Side(title, peer=peer)


async def _measure(setting: Setting, place: Place, findings: Findings, turn: tuple[Side, int]) -> None:
    side, run = turn
    with setting.folder() as scratch:
        try:
            first, sent = await _once(place, side, scratch)
            second = await _once(place, side, scratch) if side.is_due_again(run) else None
        except ChildFailed as error:
            if side.peer is None:
                raise
            findings.failed(side.title, error)
            return
    samples, is_counted = findings.samples, side.bytes_per_second is None
    samples.add_all(side.title, {SECONDS: first.seconds, FIRST_TENSOR: first.first_tensor_seconds})
    if is_counted:
        samples.add(ORIGIN_BYTES, side.title, sent)
    if second is not None:
        samples.add(AGAIN, side.title, second[0].seconds)
        if is_counted:
            samples.add(AGAIN_BYTES, side.title, second[1])


async def _once(place: Place, side: Side, scratch: Path) -> tuple[Intake, int]:
    """What was read, which was right, and what the origin sent for it."""
    place.origin.reset()
    name = _TENSORIZED if side.peer is Peer.TENSORIZER else place.model.name
    errand = Errand(place.origin.url, name, scratch, with_digest=True)
    if side.peer is not None and place.peers is not None:
        intake = await peer_intake(side.peer, errand, place.peers)
    else:
        intake = await _ours(side, errand)
    place.model.check_intake(intake)
    return intake, place.origin.stats().body_bytes()


async def _ours(side: Side, errand: Errand) -> Intake:
    request = FetchRequest(side.reference or "", errand.scratch, bytes_per_second=side.bytes_per_second)
    async with running(_READER, environment=our_environment(errand)) as reader:
        await reader.tell(request.to_json())
        if await reader.next_line() != "ready":
            raise await reader.failure("is not a reader")
        await reader.tell("go")
        return Intake(**json.loads(await reader.last_line()))


def _add_lines(findings: Findings, titles: list[str]) -> None:
    for measure, what in (
        (SECONDS, "all tensors"),
        (FIRST_TENSOR, "first tensor"),
        (ORIGIN_BYTES, "origin bytes"),
        (AGAIN, "second run"),
    ):
        for title in titles:
            findings.median(f"{what}: {title}", measure, title)
