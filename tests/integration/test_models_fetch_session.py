"""Whole fetches against an origin that misbehaves: what arrives is right, or the fetch says why not."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from headrace_models.errors import FetchFailed, SourceChanged
from headrace_models.fetch import fetcher, looking_on, patience
from headrace_models.fetch.client import FetchProcess
from headrace_models.fetch.events import Completed, Failed, FetchEvent, Indexed, Noted, Progress, Started
from headrace_models.fetch.request import FetchRequest
from headrace_models.fetch.session import run_session, shards_of
from headrace_models.layer_plan import Stage, is_tied, stage_groups
from headrace_models.reading.open_model import open_model
from headrace_models.reference import parse_reference
from headrace_models.sources import http_body
from headrace_models.sources.base import Body, SourceFile
from headrace_models.store.model_store import ModelStore
from headrace_models.store.model_writer import ModelWriter
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust
from loadtests.origin import faults as of
from loadtests.origin.access import Access
from loadtests.origin.faults import Fault, Faults, When
from loadtests.origin.link import Link
from loadtests.origin.server import Origin, running_origin
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.memory_source import MemorySource
from tests.fakes.origin_http import Ask, Reply, origin_http, serve

WEIGHTS = When(path="*model*.safetensors")
BLOBS = When(path="*/blobs/*")
MIB = 1 << 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 15 MB in two shards, untied."""
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint(directory, num_layers=12, hidden=160, shards=2, tied=False)
    return directory


@pytest.fixture
def origin(checkpoint: Path) -> Iterator[Origin]:
    with running_origin({"tiny": checkpoint}) as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are a hundred times shorter."""
    monkeypatch.setattr(patience, "FIRST_SECONDS", 0.0025)
    monkeypatch.setattr(patience, "LONGEST_SECONDS", 0.15)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def web(origin: Origin) -> str:
    return f"{origin.url}/files/tiny/"


def oci(origin: Origin, tag: str = "latest") -> str:
    return f"oci://{origin.address}/tiny:{tag}"


def fetch(request: FetchRequest) -> list[FetchEvent]:
    """All events of a fetch in this process."""
    events: list[FetchEvent] = []
    run_session(request, events.append, stop=threading.Event())
    return events


def last(events: list[FetchEvent]) -> FetchEvent:
    """The one that says how it ended; there is exactly one of that kind."""
    assert sum(isinstance(event, Completed | Failed) for event in events) == 1
    return events[-1]


def completed(events: list[FetchEvent]) -> Completed:
    event = last(events)
    assert isinstance(event, Completed), event
    return event


def failed(events: list[FetchEvent]) -> Failed:
    event = last(events)
    assert isinstance(event, Failed), event
    return event


def stored(cache_dir: Path, reference: str) -> StoredModel:
    found = ModelStore(cache_dir).find(str(parse_reference(reference)))
    assert found is not None
    return found


def shards(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}


def kept_shards(model: StoredModel) -> dict[str, bytes]:
    return {file.path: model.shard_path(number).read_bytes() for number, file in enumerate(model.index.files)}


def weight_bytes_sent(origin: Origin, checkpoint: Path) -> int:
    names = {f"/files/tiny/{path.name}" for path in checkpoint.glob("*.safetensors")}
    return sum(entry.body_bytes for path, entry in origin.stats().paths.items() if path in names)


def test_a_directory_on_the_web_arrives_byte_by_byte_and_only_once(
    origin: Origin, checkpoint: Path, cache_dir: Path
) -> None:
    events = fetch(FetchRequest(web(origin), cache_dir))
    assert completed(events).trust is Trust.NONE
    model = stored(cache_dir, web(origin))
    assert kept_shards(model) == shards(checkpoint)
    assert (model.skeleton / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()
    assert model.status().sealed
    origin.reset()
    assert completed(fetch(FetchRequest(web(origin), cache_dir))).fetched_bytes == 0
    assert weight_bytes_sent(origin, checkpoint) <= 4, "probes of a byte each"


def test_events_come_in_their_order_and_progress_ends_at_everything(origin: Origin, cache_dir: Path) -> None:
    events = fetch(FetchRequest(web(origin), cache_dir))
    kinds = [type(event) for event in events if not isinstance(event, Noted)]
    assert kinds[:2] == [Started, Indexed]
    assert set(kinds[2:-1]) == {Progress}
    final = [event for event in events if isinstance(event, Progress)][-1]
    assert final.present_bytes == final.total_bytes == sum(group.total_bytes for group in final.groups)
    assert [group.name for group in final.groups][:3] == ["headers", "embedding", "layer.0"]


def test_an_artifact_is_trusted_as_far_as_its_digests_reach(origin: Origin, checkpoint: Path, cache_dir: Path) -> None:
    by_file = completed(fetch(FetchRequest(oci(origin), cache_dir)))
    by_chunk = completed(fetch(FetchRequest(oci(origin, "indexed"), cache_dir)))
    assert (by_file.trust, by_chunk.trust) == (Trust.FILE, Trust.CHUNK)
    assert kept_shards(stored(cache_dir, oci(origin, "indexed"))) == shards(checkpoint)


def test_a_hub_s_model_arrives_with_the_digests_of_its_files(
    origin: Origin, checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{origin.url}/hub")
    events = fetch(FetchRequest("hf://tiny", cache_dir))
    assert completed(events).trust is Trust.FILE
    assert kept_shards(stored(cache_dir, "hf://tiny")) == shards(checkpoint)


def test_a_bucket_s_model_arrives(
    origin: Origin, checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"{origin.url}/s3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert completed(fetch(FetchRequest("s3://models/tiny", cache_dir))).trust is Trust.NONE
    assert kept_shards(stored(cache_dir, "s3://models/tiny")) == shards(checkpoint)


@pytest.mark.parametrize(
    "fault",
    [
        of.Status(when=When(probability=0.3, once_each=True), status=503),
        of.Status(when=When(most=3), status=429, retry_after_seconds=0),
        of.Reset(when=replace(WEIGHTS, probability=0.5, once_each=True)),
        of.Truncate(when=replace(WEIGHTS, probability=0.5, once_each=True)),
        of.Stall(when=replace(WEIGHTS, most=2), seconds=30.0),
        of.IgnoreRange(when=WEIGHTS),
        of.IgnoreRange(),
        of.Redirect(when=WEIGHTS, valid_seconds=0.4),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.when.path}",
)
def test_whatever_the_source_gets_over_the_model_is_right_in_the_end(
    origin: Origin, checkpoint: Path, cache_dir: Path, fault: Fault
) -> None:
    origin.set_faults(Faults((fault,)))
    origin.set_link(Link(bytes_per_second=20 * MIB))
    completed(fetch(FetchRequest(web(origin), cache_dir, stall_seconds=0.5, patience_seconds=20.0)))
    assert kept_shards(stored(cache_dir, web(origin))) == shards(checkpoint)


def test_a_registry_whose_tokens_expire_and_whose_blobs_lie_elsewhere_is_followed_without_leaking(
    checkpoint: Path, cache_dir: Path
) -> None:
    access = Access(registry_tokens=True, token_requests=3)
    faults = Faults((of.Redirect(when=BLOBS, valid_seconds=0.4), of.ExpireTokens(when=When(first=6, most=2))))
    link = Link(bytes_per_second=20 * MIB)
    with running_origin({"tiny": checkpoint}, link=link, access=access, faults=faults) as origin:
        completed(fetch(FetchRequest(oci(origin), cache_dir, max_connections=1)))
        assert origin.stats().authorization_leaks == 0
        assert kept_shards(stored(cache_dir, oci(origin))) == shards(checkpoint)


def test_a_wrong_chunk_is_noticed_thrown_away_and_asked_for_again(
    origin: Origin, checkpoint: Path, cache_dir: Path
) -> None:
    origin.set_faults(Faults((of.Flip(when=BLOBS, every_bytes=3 * MIB),)))
    events = fetch(FetchRequest(oci(origin, "indexed"), cache_dir))
    assert completed(events).fetched_bytes > sum(map(len, shards(checkpoint).values()))
    assert kept_shards(stored(cache_dir, oci(origin, "indexed"))) == shards(checkpoint)


def test_a_chunk_that_stays_wrong_ends_the_fetch_and_is_never_kept(
    origin: Origin, checkpoint: Path, cache_dir: Path
) -> None:
    blob = max(shards(checkpoint).values(), key=len)
    faults = of.Flip(when=BLOBS, every_bytes=5 * MIB, always=True)
    origin.set_faults(Faults((faults,)))
    assert failed(fetch(FetchRequest(oci(origin, "indexed"), cache_dir))).kind == "DigestMismatch"
    model = stored(cache_dir, oci(origin, "indexed"))
    assert not model.status().complete
    assert model.check_integrity(repair=False).is_sound
    assert len(blob) > 5 * MIB


def test_a_file_that_does_not_match_its_digest_is_fetched_once_more(
    origin: Origin, checkpoint: Path, cache_dir: Path
) -> None:
    origin.set_faults(Faults((of.Flip(when=BLOBS, every_bytes=4 * MIB),)))
    events = fetch(FetchRequest(oci(origin), cache_dir))
    completed(events)
    assert any("once more" in event.message for event in events if isinstance(event, Noted))
    assert kept_shards(stored(cache_dir, oci(origin))) == shards(checkpoint)


def test_a_file_that_never_matches_is_refused(origin: Origin, cache_dir: Path) -> None:
    origin.set_faults(Faults((of.Flip(when=BLOBS, every_bytes=4 * MIB, always=True),)))
    assert failed(fetch(FetchRequest(oci(origin), cache_dir))).kind == "DigestMismatch"
    assert not stored(cache_dir, oci(origin)).status().complete


def test_a_file_that_changes_under_way_ends_the_fetch_and_is_never_mixed(
    origin: Origin, cache_dir: Path, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "other", num_layers=12, hidden=160, shards=2, tied=False, seed=7)
    change = of.Change(when=replace(WEIGHTS, first=9), model="tiny", directory=tmp_path / "other")
    origin.set_faults(Faults((change,)))
    request = FetchRequest(web(origin), cache_dir, max_connections=1)
    assert failed(fetch(request)).kind == "SourceChanged"
    origin.set_faults(of.NO_FAULTS)
    completed(fetch(request))
    assert kept_shards(stored(cache_dir, web(origin))) == shards(tmp_path / "other")


def test_wrong_content_ranges_end_the_fetch(origin: Origin, cache_dir: Path) -> None:
    origin.set_faults(Faults((of.WrongRange(when=replace(WEIGHTS, first=5)),)))
    assert failed(fetch(FetchRequest(web(origin), cache_dir))).kind in {"SourceUnusable", "SourceChanged"}


def test_a_source_that_stays_away_ends_the_fetch_when_patience_ends(origin: Origin, cache_dir: Path) -> None:
    origin.set_faults(Faults((of.Status(when=replace(WEIGHTS, first=6), status=503),)))
    event = failed(fetch(FetchRequest(web(origin), cache_dir, patience_seconds=0.4)))
    assert event.kind == "SourceUnavailable"
    assert stored(cache_dir, web(origin)).status().failure == event.message


def test_a_model_that_is_complete_serves_while_its_source_is_away(
    origin: Origin, checkpoint: Path, cache_dir: Path
) -> None:
    request = FetchRequest(oci(origin), cache_dir, patience_seconds=0.2)
    completed(fetch(request))
    origin.set_faults(Faults((of.Status(status=503),)))
    events = fetch(request)
    completed(events)
    assert any("fetched earlier" in event.message for event in events if isinstance(event, Noted))


def test_a_reference_that_cannot_change_needs_no_source_at_all(origin: Origin, cache_dir: Path) -> None:
    completed(fetch(FetchRequest(oci(origin), cache_dir)))
    pinned = f"oci://{origin.address}/tiny@{stored(cache_dir, oci(origin)).revision}"
    completed(fetch(FetchRequest(pinned, cache_dir)))
    origin.reset()
    assert completed(fetch(FetchRequest(pinned, cache_dir))).fetched_bytes == 0
    assert origin.stats().paths == {}


def die(_writer: ModelWriter) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("is_away", [False, True], ids=["there", "away"])
def test_a_fetch_that_died_before_its_seal_is_sealed_by_the_next_one(
    origin: Origin, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    completed(fetch(FetchRequest(oci(origin), cache_dir, groups=())))
    pinned = FetchRequest(f"oci://{origin.address}/tiny@{stored(cache_dir, oci(origin)).revision}", cache_dir)
    with monkeypatch.context() as patched:
        patched.setattr(ModelWriter, "seal", die)
        with pytest.raises(KeyboardInterrupt):
            fetch(pinned)
    if is_away:
        origin.set_faults(Faults((of.Status(status=503),)))
    assert completed(fetch(pinned)).trust is Trust.FILE
    assert stored(cache_dir, pinned.reference).status().proven


def test_wrong_bytes_of_a_fetch_that_died_before_its_seal_are_fetched_again(
    origin: Origin, checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completed(fetch(FetchRequest(oci(origin), cache_dir, groups=())))
    pinned = FetchRequest(f"oci://{origin.address}/tiny@{stored(cache_dir, oci(origin)).revision}", cache_dir)
    origin.set_faults(Faults((of.Flip(when=BLOBS, every_bytes=4 * MIB),)))
    with monkeypatch.context() as patched:
        patched.setattr(ModelWriter, "seal", die)
        with pytest.raises(KeyboardInterrupt):
            fetch(pinned)
    assert completed(fetch(pinned)).trust is Trust.FILE
    assert kept_shards(stored(cache_dir, pinned.reference)) == shards(checkpoint)


def test_a_part_of_what_only_whole_files_prove_is_not_called_checked(origin: Origin, cache_dir: Path) -> None:
    assert completed(fetch(FetchRequest(oci(origin), cache_dir, groups=("layer.0",)))).trust is Trust.NONE
    assert completed(fetch(FetchRequest(oci(origin, "indexed"), cache_dir, groups=("layer.0",)))).trust is Trust.CHUNK


def test_more_trust_than_the_source_can_give_is_refused_before_the_weights(
    origin: Origin, checkpoint: Path, cache_dir: Path
) -> None:
    event = failed(fetch(FetchRequest(web(origin), cache_dir, require_trust=Trust.FILE)))
    assert "'none'" in event.message
    assert weight_bytes_sent(origin, checkpoint) < 0.1 * sum(map(len, shards(checkpoint).values()))


def test_a_connection_that_trickles_is_given_up(
    checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trickle:
        """Gives the first bytes, then one byte at a time, each after a wait."""

        def __init__(self, body: Body) -> None:
            self.begin, self.end, self._body = body.begin, body.end, body

        def read(self, max_bytes: int) -> bytes:
            time.sleep(0.02)
            return self._body.read(1)

    source = MemorySource.from_directory(checkpoint)
    trickled: list[tuple[int, int]] = []

    @contextmanager
    def read(file: SourceFile, begin: int, end: int) -> Iterator[Body]:
        with MemorySource.read(source, file, begin, end) as body:
            trickles = file.path.endswith(".safetensors") and end - begin > MIB and not trickled
            if trickles:
                trickled.append((begin, end))
            yield Trickle(body) if trickles else body

    monkeypatch.setattr(source, "read", read)
    monkeypatch.setattr("headrace_models.fetch.locating.open_source", lambda _reference, _options: source)
    completed(fetch(FetchRequest("hf://a/b", cache_dir, stall_seconds=0.2)))
    assert len(trickled) == 1
    assert kept_shards(stored(cache_dir, "hf://a/b")) == shards(checkpoint)


def memory_source(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> MemorySource:
    """What `hf://a/b` is from now on."""
    source = MemorySource.from_directory(checkpoint)
    monkeypatch.setattr("headrace_models.fetch.locating.open_source", lambda _reference, _options: source)
    return source


def test_a_source_that_always_breaks_off_within_a_chunk_ends_the_fetch(
    checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = memory_source(checkpoint, monkeypatch)

    def break_off(_file: SourceFile, begin: int, end: int) -> None:
        source.breaks_after = 20_000 if end - begin > MIB else None

    source.before_read, source.max_connections = break_off, 1
    request = FetchRequest("hf://a/b", cache_dir, patience_seconds=0.1, max_connections=1)
    assert failed(fetch(request)).kind == "SourceUnavailable"


def test_a_connection_that_trickles_over_a_real_socket_is_given_up(
    checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_body, "GATHER_SECONDS", 0.02)
    files = {f"/m/{path.name}": path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}
    whole = serve(files)
    trickled: list[str] = []

    def answer(ask: Ask) -> Reply:
        reply = whole(ask)
        if len(reply.body) > MIB and not trickled:
            trickled.append(ask.path)
            return replace(reply, sent_bytes=1, trickles=True)
        return reply

    with origin_http(answer) as origin:
        completed(fetch(FetchRequest(f"{origin.url}/m/", cache_dir, stall_seconds=0.3)))
        assert kept_shards(stored(cache_dir, f"{origin.url}/m/")) == shards(checkpoint)
    assert origin.dropped.is_set(), "it was not waited for"


def test_what_is_demanded_counts_against_the_budget(origin: Origin, checkpoint: Path, cache_dir: Path) -> None:
    total = sum(map(len, shards(checkpoint).values()))
    with open_model(web(origin), cache_dir, max_bytes=total // 2) as model:
        with pytest.raises(FetchFailed, match=r"cache\.max_bytes"):
            for _tensor in model.tensors():
                pass
        assert model.stored.status().allocated_bytes < total // 2


def test_a_stop_ends_a_fetch_on_demand_that_waits_for_bytes(
    checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, stop, asked = memory_source(checkpoint, monkeypatch), threading.Event(), threading.Event()

    def wait_until_closed(file: SourceFile, begin: int, _end: int) -> None:
        while file.path.endswith(".safetensors") and begin > MIB and not source.is_closed:
            asked.set()
            time.sleep(0.005)

    source.before_read = wait_until_closed
    request, ended = FetchRequest("hf://a/b", cache_dir, on_demand=True), threading.Event()

    def demand(event: FetchEvent) -> None:
        if isinstance(event, Indexed):
            with ModelStore(cache_dir).open_key(event.key).reader() as reader:
                reader.want(0, 2 * MIB, 3 * MIB)

    def run() -> None:
        run_session(request, demand, stop=stop)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert asked.wait(10)
        stop.set()
        assert ended.wait(10)
    finally:
        source.is_closed = True
        thread.join()


def test_who_wants_a_whole_model_gets_it_from_a_process_that_fetches_on_demand(
    origin: Origin, checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking_on, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(looking_on, "IDLE_SECONDS", 0.1)
    with open_model(web(origin), cache_dir) as model:
        model.tensor(model.index.tensors[0].name)
        completed(fetch(FetchRequest(web(origin), cache_dir)))
        assert kept_shards(model.stored) == shards(checkpoint)


def test_a_shard_that_is_listed_with_another_size_than_before_is_not_mixed(
    checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = memory_source(checkpoint, monkeypatch)
    completed(fetch(FetchRequest("hf://a/b", cache_dir, groups=())))
    index = stored(cache_dir, "hf://a/b").index
    assert [file.path for file in shards_of(index, source)] == [file.path for file in index.files]
    source.files = tuple(replace(file, size_bytes=file.size_bytes + 1) for file in source.files)
    with pytest.raises(SourceChanged, match="another size"):
        shards_of(index, source)


def test_a_stage_fetches_its_own_bytes(origin: Origin, checkpoint: Path, cache_dir: Path) -> None:
    completed(fetch(FetchRequest(web(origin), cache_dir, on_demand=False, groups=())))
    index = stored(cache_dir, web(origin)).index
    groups = stage_groups(
        index.groups, Stage(0, 6, first=True, last=False), tied=is_tied(t.name for t in index.tensors)
    )
    completed(fetch(FetchRequest(web(origin), cache_dir, groups=tuple(groups))))
    status = stored(cache_dir, web(origin)).status()
    assert {name for name, present, _ in status.present_by_group if present} == {"headers", *groups}
    assert not status.complete
    completed(fetch(FetchRequest(web(origin), cache_dir)))
    assert kept_shards(stored(cache_dir, web(origin))) == shards(checkpoint)


def test_a_budget_that_the_model_cannot_fit_is_told_before_its_weights(
    origin: Origin, checkpoint: Path, cache_dir: Path
) -> None:
    event = failed(fetch(FetchRequest(web(origin), cache_dir, max_bytes=2 * MIB)))
    assert event.kind == "NoSpace"
    assert "headrace rm" in event.message
    assert weight_bytes_sent(origin, checkpoint) < 0.1 * sum(map(len, shards(checkpoint).values()))


def test_a_model_that_must_go_gives_up_its_tail_and_comes_back_for_half(checkpoint: Path, cache_dir: Path) -> None:
    total = sum(map(len, shards(checkpoint).values()))
    budget = int(1.5 * total) + 4 * MIB
    with running_origin({"a": checkpoint, "b": checkpoint}) as origin:
        first, second = (FetchRequest(f"{origin.url}/files/{name}/", cache_dir, max_bytes=budget) for name in "ab")
        completed(fetch(first))
        completed(fetch(second))
        left = stored(cache_dir, first.reference).status()
        assert 0 < left.present_bytes < total
        groups = [name for name, present, size in left.present_by_group if present == size]
        assert groups[:3] == ["headers", "embedding", "layer.0"]
        back = completed(fetch(first))
        assert back.fetched_bytes == pytest.approx(total - left.present_bytes, abs=2 * MIB)
        assert kept_shards(stored(cache_dir, first.reference)) == shards(checkpoint)


def test_a_local_directory_is_used_where_it_is(checkpoint: Path, cache_dir: Path) -> None:
    events = fetch(FetchRequest(str(checkpoint), cache_dir))
    assert completed(events).trust is Trust.NONE
    model = stored(cache_dir, f"file://{checkpoint}")
    assert model.is_local
    assert model.skeleton == checkpoint
    assert model.status().complete


def test_two_fetches_of_one_model_share_the_work(origin: Origin, checkpoint: Path, cache_dir: Path) -> None:
    origin.set_link(Link(bytes_per_second=30 * MIB))
    request = FetchRequest(web(origin), cache_dir)
    outcomes: list[FetchEvent] = []
    threads = [threading.Thread(target=lambda: outcomes.append(last(fetch(request)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(event) for event in outcomes] == [Completed, Completed]
    total = sum(map(len, shards(checkpoint).values()))
    assert weight_bytes_sent(origin, checkpoint) == pytest.approx(total, rel=0.1)


def test_the_bandwidth_limit_and_the_connections_are_kept(origin: Origin, cache_dir: Path) -> None:
    request = FetchRequest(web(origin), cache_dir, max_connections=2)
    completed(fetch(request))
    assert origin.stats().peak_connections <= 2 + 8, "eight look for the files"


def test_a_stopped_fetch_keeps_what_has_come(origin: Origin, checkpoint: Path, cache_dir: Path) -> None:
    origin.set_link(Link(bytes_per_second=20 * MIB))
    stop = threading.Event()
    events: list[FetchEvent] = []

    def on_event(event: FetchEvent) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.present_bytes > 4 * MIB:
            stop.set()

    run_session(FetchRequest(web(origin), cache_dir), on_event, stop=stop)
    assert "stopped" in failed(events).message
    before = stored(cache_dir, web(origin)).status().present_bytes
    assert before > 4 * MIB
    origin.set_link(Link())
    origin.reset()
    completed(fetch(FetchRequest(web(origin), cache_dir)))
    assert weight_bytes_sent(origin, checkpoint) <= sum(map(len, shards(checkpoint).values())) - before + MIB


def kill_when(process: FetchProcess, present_bytes: int) -> None:
    """SIGKILL the child once so many bytes are there."""
    for event in process.events():
        if isinstance(event, Progress) and event.present_bytes >= present_bytes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            return


def test_a_killed_child_is_started_again_and_loses_less_than_a_chunk_per_connection(
    origin: Origin, checkpoint: Path, cache_dir: Path
) -> None:
    total = sum(map(len, shards(checkpoint).values()))
    origin.set_link(Link(bytes_per_second=12 * MIB))
    process = FetchProcess(FetchRequest(web(origin), cache_dir))
    process.start()
    kills, events = 0, []
    for event in process.events():
        events.append(event)
        if isinstance(event, Progress) and event.present_bytes > (kills + 1) * total / 3 and kills < 2:
            kills += 1
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
    completed(events)
    assert kills == 2
    assert sum(isinstance(event, Started) for event in events) == 3
    assert kept_shards(stored(cache_dir, web(origin))) == shards(checkpoint)
    assert weight_bytes_sent(origin, checkpoint) <= total + 2 * 8 * MIB + MIB


def test_a_child_that_is_left_is_ended(origin: Origin, cache_dir: Path) -> None:
    origin.set_link(Link(bytes_per_second=MIB))
    process = FetchProcess(FetchRequest(web(origin), cache_dir))
    process.start()
    child = process.pid
    for event in process.events():
        if isinstance(event, Indexed):
            break
    process.stop()
    list(process.events())
    assert child is not None
    assert process.pid is None


def test_a_child_gets_the_environment_of_the_moment_at_which_it_was_asked_for(
    origin: Origin, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{origin.url}/hub")
    process = FetchProcess(FetchRequest("hf://tiny", cache_dir))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    process.start()
    completed(list(process.events()))


def test_a_child_that_always_dies_is_given_up(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    request = FetchRequest("hf://a/b", cache_dir)
    broken = replace(request, reference="x" * 10_000_000)
    monkeypatch.setattr("headrace_models.fetch.client.MAX_STARTS", 2)
    monkeypatch.setattr(FetchRequest, "to_json", lambda _self: "not json")
    process = FetchProcess(broken)
    process.start()
    events = list(process.events())
    event = failed(events)
    assert event.kind == "FetchFailed"
    assert "JSON" in event.message


def test_a_child_that_cannot_be_started_again_is_a_failure(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_models.fetch.client.MAX_STARTS", 2)
    process = FetchProcess(FetchRequest("hf://a/b", cache_dir))
    with monkeypatch.context() as patched:
        patched.setattr("sys.executable", shutil.which("false"))
        process.start()
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert "No such file" in failed(list(process.events())).message


def test_a_child_that_dies_before_it_has_read_its_request_is_a_failure(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_models.fetch.client.MAX_STARTS", 1)
    monkeypatch.setattr("sys.executable", shutil.which("false"))

    def late(_request: FetchRequest) -> str:
        time.sleep(0.05)
        return "{}"

    monkeypatch.setattr(FetchRequest, "to_json", late)
    process = FetchProcess(FetchRequest("hf://a/b", cache_dir))
    process.start()
    assert "exit code 1" in failed(list(process.events())).message


def test_leftovers_of_dead_fetches_are_swept(origin: Origin, cache_dir: Path) -> None:
    left = cache_dir / "spool" / "left"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (left / "blob").write_bytes(b"x" * 1000)
    completed(fetch(FetchRequest(web(origin), cache_dir)))
    assert [path.name for path in (cache_dir / "spool").iterdir()] == ["lock"]
    assert shutil.disk_usage(cache_dir).free > 0


def test_what_no_thread_can_mend_comes_out_of_the_fetch(
    origin: Origin, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object, **_keywords: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(fetcher, "arriving", broken)
    with pytest.raises(ZeroDivisionError):
        fetch(FetchRequest(web(origin), cache_dir))
