"""The fetching process killed at any moment, beside others that pull, read, evict and remove the same model."""

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace_models.errors import ModelBusy, ModelError, ModelNotFound
from headrace_models.fetch.client import FetchProcess
from headrace_models.fetch.events import Completed, Failed, FetchEvent, Progress
from headrace_models.fetch.request import FetchRequest
from headrace_models.reading.open_model import open_request
from headrace_models.reference import parse_reference
from headrace_models.store.model_store import ModelStore
from loadtests.origin.link import Link
from loadtests.origin.server import Origin, running_origin
from tests.fakes.checkpoints import write_checkpoint

MIB = 1 << 20
# Every round is some five starts of a process.
NUM_ROUNDS = max(2, int(os.environ.get("FAULT_KILLS", "20")) // 10)
LOST_PER_KILL_BYTES = 8 * MIB + (1 << 18)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint(directory, num_layers=12, hidden=320, shards=3, tied=False)
    return directory


@pytest.fixture
def origin(checkpoint: Path) -> Iterator[Origin]:
    link = Link(bytes_per_second=40 * MIB, latency_seconds=0.005)
    with running_origin({"tiny": checkpoint}, link=link) as running:
        yield running


def shards(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(checkpoint.glob("*.safetensors"))}


def killed_after(request: FetchRequest, num_bytes: int) -> FetchEvent | None:
    """The event that ended the fetch, or None after a SIGKILL once so many bytes had come."""
    process = FetchProcess(request)
    process.start()
    for event in process.events():
        if isinstance(event, Completed | Failed):
            return event
        if isinstance(event, Progress) and event.fetched_bytes >= num_bytes and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.stop()
    return None


@pytest.mark.parametrize("seed", range(NUM_ROUNDS))
@pytest.mark.parametrize("tag", ["latest", "indexed"])
def test_a_model_is_right_and_fetched_nearly_once_however_often_its_fetch_is_killed(
    origin: Origin, checkpoint: Path, tmp_path: Path, seed: int, tag: str
) -> None:
    chance = random.Random(seed)
    reference = f"oci://{origin.address}/tiny:{tag}"
    request = FetchRequest(reference, tmp_path)
    total = sum(map(len, shards(checkpoint).values()))
    num_kills, ended = 0, None
    while ended is None and num_kills < 5:
        ended = killed_after(request, chance.randrange(total // 3))
        num_kills += ended is None
        stored = ModelStore(tmp_path).find(str(parse_reference(reference)))
        assert stored is None or stored.check_integrity(repair=False).is_sound
    ended = ended or killed_after(request, 10 * total)
    assert isinstance(ended, Completed), ended
    stored = ModelStore(tmp_path).find(str(parse_reference(reference)))
    assert stored is not None
    kept = {file.path: stored.shard_path(number).read_bytes() for number, file in enumerate(stored.index.files)}
    assert kept == shards(checkpoint)
    blobs = sum(stats.body_bytes for path, stats in origin.stats().paths.items() if "/blobs/" in path)
    assert blobs <= total + (num_kills + 1) * (LOST_PER_KILL_BYTES + MIB)
    assert sorted(path.name for path in (tmp_path / "spool").iterdir()) == ["lock"]
    assert [path.name for path in (tmp_path / "models").iterdir() if ".tmp-" in path.name] == []


@pytest.mark.parametrize("seed", range(NUM_ROUNDS))
def test_pulling_reading_and_removing_one_model_at_once_ends_in_right_bytes_or_a_clear_error(
    origin: Origin, checkpoint: Path, tmp_path: Path, seed: int
) -> None:
    request = FetchRequest(f"oci://{origin.address}/tiny:latest", tmp_path, max_bytes=200 * MIB)
    over = threading.Event()
    with ThreadPoolExecutor(3) as threads:
        removing = threads.submit(remove_again_and_again, request, over, random.Random(seed))
        reading = [threads.submit(read_or_fail_clearly, request, checkpoint) for _ in range(2)]
        for reader in reading:
            reader.result()
        over.set()
        removing.result()
    read_all(request, checkpoint)


def remove_again_and_again(request: FetchRequest, over: threading.Event, chance: random.Random) -> None:
    store = ModelStore(request.cache_dir)
    while not over.wait(chance.random() / 20):
        stored = store.find(str(parse_reference(request.reference)))
        if stored is not None:
            with contextlib.suppress(ModelBusy, ModelNotFound):
                store.remove(stored.key)


def read_or_fail_clearly(request: FetchRequest, checkpoint: Path) -> None:
    """Three times; the model may be removed between two steps of a read."""
    for _ in range(3):
        with contextlib.suppress(ModelError):
            read_all(request, checkpoint)


def read_all(request: FetchRequest, checkpoint: Path) -> None:
    expected = shards(checkpoint)
    with open_request(request) as model:
        files = [expected[file.path] for file in model.index.files]
        places = model.index.tensors_by_name
        for tensor in model.tensors():
            place = places[tensor.name]
            assert tensor.data == files[place.file][place.begin : place.end], tensor.name
