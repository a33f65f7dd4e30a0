"""Row `first-token`: a cold start with its model behind a link, against the same start from the local disk.

The engine's boot is what a start takes until the engine asks for its first weight, told by the lease that its loader
then takes of the model in the store; the demand log said the same within 12 ms, but has nothing where nothing has to be
waited for. The first local start gives the links: the one that just brings the model within a
boot, and half of it. All sides take turns, each start with an empty cache. With the slow link there is a bound that no
server gets under: fetch or boot, whichever takes longer, and then the load, which is what a local start takes after its
boot.
"""

import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from headrace_models.store.model_directory import LEASE_LOCK
from headrace_server.bench.endpoint import Endpoint
from headrace_server.bench.measures import Measure
from loadtests.cache_children import our_environment
from loadtests.cache_findings import MIB, ORIGIN_BYTES, Findings, at_most
from loadtests.cache_registry import free_port
from loadtests.cache_served import WrongResult
from loadtests.cache_setting import LATENCY_SECONDS, Protocol, Setting, reference_of
from loadtests.cache_starts import FirstToken, command, first_token, headrace, with_environment
from loadtests.launcher import LOOPBACK, ServerFailed, prepare_subject
from loadtests.origin.bucket import BUCKET
from loadtests.origin.link import Link
from loadtests.origin.remote import RemoteOrigin, origin_process
from loadtests.peers.running import Errand, environment

LOCAL, FAST, SLOW = "local disk", "fast link", "slow link"
HUB, RUNAI, DOWNLOAD = "vLLM, hub", "vLLM, runai (S3)", "download, then vLLM"

FIRST_TOKEN = Measure("first_token_seconds", "first token", "s", digits=2)
BOOT = Measure("engine_boot_seconds", "engine boot", "s", digits=2)
BOUND = Measure("bound_seconds", "bound", "s", digits=2)
SLOW_SHARE = Measure("first_token_share_of_bound", "first token / bound", "×", digits=3)

# The first start reads libraries from the disk; it is in the document and counts for nothing.
_WARM_UP = "warm-up"


@dataclass(slots=True)
class Round:
    """What the starts share: engine arguments as vLLM gets them, and the text that all must answer with."""

    setting: Setting
    origin: RemoteOrigin
    engine_line: tuple[str, ...]
    findings: Findings = field(default_factory=Findings)
    text: str | None = None

    @property
    def bytes_per_second(self) -> float:
        """What brings the model within the boot of the first local start that counts."""
        return self.setting.model.total_bytes / self.findings.samples.of(BOOT, LOCAL)[0]

    def link(self, share: float) -> Link:
        """The link that brings the model within a boot, or a share of it."""
        return Link(bytes_per_second=share * self.bytes_per_second, latency_seconds=LATENCY_SECONDS)

    def note(self, side: str, found: FirstToken) -> None:
        """Keep a time. Raises WrongResult where the answer is another one than before."""
        self.text = self.text or found.text
        if found.text != self.text:
            raise WrongResult(f"{side} answered {found.text!r}, and another one {self.text!r}")
        self.findings.samples.add(FIRST_TOKEN, side, found.seconds)


async def measure_first_token(setting: Setting) -> Findings:
    """All sides in turn. Raises HeadraceError."""
    subject = await prepare_subject(str(setting.model.directory))
    with origin_process({setting.model.name: setting.model.directory}) as origin:
        shared = Round(setting, origin, subject.engine_line)
        await _ours(shared, _WARM_UP)
        for run in range(setting.num_runs):
            setting.tell(f"  run {run + 1}: {LOCAL}, {FAST}, {SLOW}")
            for side in (LOCAL, FAST, SLOW) if run % 2 == 0 else (SLOW, FAST, LOCAL):
                await _ours(shared, side)
        if setting.peers is not None:
            await _all_peers(shared, setting.peers)
    _add_bound(shared)
    _add_lines(shared)
    return shared.findings


async def _ours(shared: Round, side: str) -> None:
    model, is_local = shared.setting.model, side not in (FAST, SLOW)
    source = str(model.directory) if is_local else reference_of(Protocol.HTTP, shared.origin.address, model.name)
    if not is_local:
        shared.origin.set_link(shared.link(0.5 if side == SLOW else 1.0))
    shared.origin.reset()
    with shared.setting.folder() as folder:
        async with headrace(source, folder / "cache", folder) as program:
            found = await first_token(program)
            stored = the_stored_model(folder / "cache")
            boot = seconds_since(program.launched_at, (stored / LEASE_LOCK).stat().st_mtime)
        if not is_local:
            model.check_stored(stored)
    shared.note(side, found)
    shared.findings.samples.add(BOOT, side, boot)
    shared.findings.samples.add(ORIGIN_BYTES, side, shared.origin.stats().body_bytes())


def the_stored_model(cache: Path) -> Path:
    """The directory of the only model in a cache. Raises WrongResult."""
    found = [path.parent for path in cache.glob("models/*/record.json")]
    if len(found) != 1:
        raise WrongResult(f"{len(found)} models in the cache, not one")
    return found[0]


def seconds_since(launched_at: float, moment: float) -> float:
    """From a stamp of `time.monotonic()` to one of `time.time()`."""
    return moment - (time.time() - time.monotonic()) - launched_at


async def _all_peers(shared: Round, peers: Path) -> None:
    """Once for each three of our runs."""
    for run in range(max(1, shared.setting.num_runs // 3)):
        for side in (HUB, RUNAI, DOWNLOAD):
            shared.setting.tell(f"  {side}, run {run + 1}")
            try:
                await _peer(shared, side, peers)
            except ServerFailed as error:
                shared.findings.failed(side, error)


async def _peer(shared: Round, side: str, peers: Path) -> None:
    shared.origin.set_link(shared.link(1.0))
    shared.origin.reset()
    endpoint = Endpoint(LOOPBACK, free_port())
    with shared.setting.folder() as folder:
        async with command(_line(shared, side, (folder, peers), endpoint), endpoint, folder) as program:
            found = await first_token(program)
    shared.note(side, found)
    shared.findings.samples.add(ORIGIN_BYTES, side, shared.origin.stats().body_bytes())


def _line(shared: Round, side: str, folders: tuple[Path, Path], endpoint: Endpoint) -> list[str]:
    """The command of a peer; `folders` are the run's own and that of the peers."""
    (folder, peers), name = folders, shared.setting.model.name
    errand = Errand(shared.origin.url, name, folder / "home")
    # vLLM leaves its sockets behind.
    online = {"HF_HUB_OFFLINE": "0", "TMPDIR": str(folder)}
    without = {**our_environment(errand), **online}
    if side == HUB:
        return with_environment(without, _vllm(shared, name, endpoint))
    if side == RUNAI:
        address = f"s3://{BUCKET}/{name}/"
        line = [*_vllm(shared, address, endpoint), "--load-format", "runai_streamer"]
        return with_environment({**environment(errand, peers), **online}, line)
    directory = str(folder / "downloaded")
    hub = str(Path(sys.executable).with_name("hf"))
    download = shlex.join([hub, "download", name, "--local-dir", directory])
    serve = shlex.join(_vllm(shared, directory, endpoint))
    return with_environment(without, ["/bin/sh", "-c", f"{download} && exec {serve}"])


def _vllm(shared: Round, model: str, endpoint: Endpoint) -> list[str]:
    """vLLM's own server with the engine arguments that Headrace has, for a model from elsewhere."""
    line = list(shared.engine_line)
    line[line.index("--model") + 1] = model
    listen = ["--host", endpoint.host, "--port", str(endpoint.port)]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *listen, *line]


def _add_bound(shared: Round) -> None:
    """max(fetch, boot) + load, of each run with the slow link; boot and load are those of the run's local start."""
    samples = shared.findings.samples
    rate = 0.5 * shared.bytes_per_second
    boots, locals_ = samples.of(BOOT, LOCAL), samples.of(FIRST_TOKEN, LOCAL)
    for number, sent in enumerate(samples.of(ORIGIN_BYTES, SLOW)):
        # The skeleton's bytes go first, over the same link.
        fetch, boot = sent / rate + LATENCY_SECONDS, boots[number]
        bound = max(fetch, boot) + locals_[number] - boot
        samples.add(BOUND, SLOW, bound)
        samples.add(SLOW_SHARE, SLOW, samples.of(FIRST_TOKEN, SLOW)[number] / bound)


def _add_lines(shared: Round) -> None:
    findings = shared.findings
    fast, slow = (f"{(shared.link(share).bytes_per_second or 0) / MIB:.1f} MiB/s" for share in (1.0, 0.5))
    findings.median("engine boot, local disk", BOOT, LOCAL)
    findings.median("local disk", FIRST_TOKEN, LOCAL)
    findings.ratio(f"{fast} / local disk", FIRST_TOKEN, FAST, LOCAL, at_most(1.1))
    findings.median(fast, FIRST_TOKEN, FAST)
    findings.median(f"{slow} / bound", SLOW_SHARE, SLOW, at_most(1.1))
    findings.median(slow, FIRST_TOKEN, SLOW)
    findings.median("the bound there", BOUND, SLOW)
    for side in (HUB, RUNAI, DOWNLOAD):
        findings.median(f"{fast}: {side}", FIRST_TOKEN, side)
    findings.remarks.append(f"all sides answered {shared.text!r}")
