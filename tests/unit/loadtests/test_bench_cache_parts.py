"""The parts of bench-cache: checkpoints, checks of results, child processes, what an answer says, what is left out."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from headrace_models.fetch.request import FetchRequest
from headrace_models.index_building import index_of_directory
from headrace_server.bench.http_reply import parse_reply
from headrace_server.bench.process_table import ProcessId, living_processes
from headrace_server.bench.side import SideFailed
from loadtests.cache_checkpoint import Shape, write_checkpoint
from loadtests.cache_children import ChildFailed, all_of, ended_with_us, running
from loadtests.cache_fetch import HASHED, fetch
from loadtests.cache_first_token import seconds_since, the_stored_model
from loadtests.cache_reader import read_plainly
from loadtests.cache_registry import registry_with
from loadtests.cache_served import ServedModel, WrongResult, allocated_bytes, serve
from loadtests.cache_setting import Protocol, reference_of
from loadtests.cache_starts import first_text, shared_memory, with_environment
from loadtests.cache_verification import _UNHASHED
from loadtests.origin.remote import origin_process
from requirements.debian_tools import ensure_docker_registry

SMALL = Shape(num_layers=4, vocabulary=512, num_shards=2, hidden_size=128)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return serve("acme/small", write_checkpoint(tmp_path_factory.mktemp("models") / "small", SMALL, seed=7))


def test_checkpoints_are_the_same_for_the_same_seed_and_of_the_same_size_for_others(
    model: ServedModel, tmp_path: Path
) -> None:
    same = serve("same", write_checkpoint(tmp_path / "same", SMALL, seed=7))
    other = serve("other", write_checkpoint(tmp_path / "other", SMALL, seed=8))
    assert same.digests == model.digests
    assert (same.contents, same.num_tensors) == (model.contents, model.num_tensors)
    assert other.contents != model.contents
    assert other.weight_bytes == model.weight_bytes


def test_a_checkpoint_is_one_that_we_can_index_with_its_head_apart(model: ServedModel) -> None:
    index = index_of_directory(model.directory, "small", digests=False)
    assert index.groups == ("embedding", *(f"layer.{number}" for number in range(4)), "head")
    assert {tensor.name for tensor in index.tensors if index.groups[tensor.group] == "head"} == {
        "lm_head.weight",
        "model.norm.weight",
    }
    assert len(index.files) == model.num_shards == 2


@pytest.fixture
def stored(model: ServedModel, tmp_path: Path) -> Path:
    """A directory as the store has one, made by hand."""
    for part, is_shard in (("skeleton", False), ("shards", True)):
        (tmp_path / "stored" / part).mkdir(parents=True)
        for path in model.directory.iterdir():
            if path.name.endswith(".safetensors") is is_shard:
                shutil.copy(path, tmp_path / "stored" / part)
    return tmp_path / "stored"


def test_a_store_with_all_files_is_right(model: ServedModel, stored: Path) -> None:
    (stored / "skeleton" / "model-00001-of-00002.safetensors").write_bytes(b"a header")
    model.check_stored(stored)
    names = ("config.json", "tokenizer.json", "model.safetensors.index.json")
    assert model.skeleton_bytes(stored) == sum((model.directory / name).stat().st_size for name in names)


def test_a_store_with_a_wrong_byte_is_no_measurement(model: ServedModel, stored: Path) -> None:
    shard = stored / "shards" / "model-00002-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(WrongResult, match="wrong model-00002"):
        model.check_stored(stored)
    model.check_stored(stored, partly=True)


def test_a_store_without_a_shard_is_no_measurement(model: ServedModel, stored: Path) -> None:
    (stored / "shards" / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(WrongResult, match="came only"):
        model.check_stored(stored)


def test_allocated_bytes_are_those_on_disk_not_those_of_sparse_files(tmp_path: Path) -> None:
    before = allocated_bytes(tmp_path)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "dense").write_bytes(b"x" * (1 << 20))
    assert 1 << 20 <= allocated_bytes(tmp_path) - before < 2 << 20


async def test_what_a_reader_reads_is_checked(model: ServedModel, tmp_path: Path) -> None:
    with origin_process({model.name: model.directory}) as origin:
        reference = reference_of(Protocol.HTTP, origin.address, model.name)
        intake = await asyncio.to_thread(read_plainly, FetchRequest(reference, tmp_path, on_demand=True))
    model.check_intake(intake)
    assert intake.tensor_bytes == index_of_directory(model.directory, "x", digests=False).weight_bytes - sum(
        file.data_begin for file in index_of_directory(model.directory, "x", digests=False).files
    )
    with pytest.raises(WrongResult):
        model.check_intake(replace(intake, digest="0" * 64))
    with pytest.raises(WrongResult):
        model.check_intake(replace(intake, num_tensors=intake.num_tensors - 1))


async def test_without_hashing_the_same_files_come_and_no_digest_is_recorded(
    model: ServedModel, tmp_path: Path
) -> None:
    recorded = {}
    with origin_process({model.name: model.directory}) as origin:
        for program in (HASHED, _UNHASHED):
            cache = tmp_path / str(program is HASHED)
            request = FetchRequest(reference_of(Protocol.HTTP, origin.address, model.name), cache)
            fetched = await fetch(request, program=program)
            model.check_stored(fetched.stored)
            assert fetched.seconds < fetched.process_seconds
            recorded[program] = any((fetched.stored / "state" / "0.digests").read_bytes())
    assert recorded == {HASHED: True, _UNHASHED: False}


async def test_a_fetch_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="a fetch failed: "):
        await fetch(FetchRequest("file:///nowhere/at/all", tmp_path))


async def test_a_child_that_ends_early_is_a_failure_with_what_it_said() -> None:
    with pytest.raises(ChildFailed, match=r"(?s)exit code 3.*\n.*not today"):
        async with running(("-c", "import sys; print('not today', file=sys.stderr); sys.exit(3)")) as child:
            await child.last_line()


async def test_a_child_that_takes_too_long_is_a_failure_and_ended() -> None:
    pids = []

    async def wait_for_ever() -> None:
        async with running(("-c", "import time; time.sleep(60)"), seconds=0.2) as child:
            pids.append(ProcessId(child.pid))
            await child.ended()

    with pytest.raises(ChildFailed, match="not done after 0.2 s"):
        await wait_for_ever()
    assert not living_processes().keys() & set(pids)


async def test_when_one_of_several_fails_the_others_are_ended() -> None:
    ended = []

    async def fail() -> None:
        raise ChildFailed("no")

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(ChildFailed):
        await all_of([wait(), fail(), wait()])
    assert ended == [True, True]


GUARDED = """
import subprocess, sys, time
from loadtests.cache_children import ended_with_us
process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
with ended_with_us(process.pid):
    print(process.pid, flush=True)
    time.sleep(60)
"""


def test_a_guarded_process_ends_with_us_however_we_end(repository: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", GUARDED], cwd=repository, stdout=subprocess.PIPE) as program:
        guarded = ProcessId(int(program.stdout.readline() if program.stdout else b"0"))
        program.kill()
    deadline = time.monotonic() + 20
    while guarded in living_processes() and time.monotonic() < deadline:
        time.sleep(0.02)
    left = guarded in living_processes()
    if left:
        os.kill(guarded, 9)
    assert not left


def test_a_guarded_process_outlives_its_context() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        with ended_with_us(process.pid):
            pass
        assert process.poll() is None
        process.kill()


def reply(*events: object) -> bytes:
    body = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def delta(content: str | None) -> dict[str, object]:
    return {"choices": [{"delta": {"role": "assistant", "content": content}}]}


def test_the_first_text_counts_not_the_first_event() -> None:
    parts = [reply(delta(""), delta(None), delta("Hel"), delta("lo"), {"choices": []}, "[DONE]")]
    raw = b"".join(parts)
    cut = raw.index(b'"Hel"')
    found = first_text(parse_reply([raw[:cut], raw[cut:]], [11.0, 12.5]), 10.0)
    assert (found.seconds, found.text) == (2.5, "Hello")


def test_an_answer_without_text_is_a_failure() -> None:
    with pytest.raises(SideFailed, match="without any text"):
        first_text(parse_reply([reply(delta(""), "[DONE]")], [1.0]), 0.0)


def test_a_command_gets_exactly_the_environment_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOO_MUCH", "1")
    monkeypatch.setenv("CHANGED", "old")
    wanted = {name: value for name, value in os.environ.items() if name != "TOO_MUCH"} | {"CHANGED": "new", "MORE": "="}
    line = with_environment(wanted, [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"])
    seen = json.loads(subprocess.check_output(line, env=os.environ))
    seen.pop("LC_CTYPE", None)
    wanted.pop("LC_CTYPE", None)
    assert seen == wanted


def test_shared_memory_of_a_process_is_found_by_its_name() -> None:
    memory = SharedMemory(create=True, size=4096)
    try:
        assert Path("/dev/shm", memory.name) in shared_memory([os.getpid()])
        assert shared_memory([]) == frozenset()
    finally:
        memory.close()
        memory.unlink()
    assert Path("/dev/shm", memory.name) not in shared_memory([os.getpid()])


def test_a_file_time_is_told_from_the_start_of_a_process(tmp_path: Path) -> None:
    launched_at = time.monotonic() - 5
    (tmp_path / "file").touch()
    assert seconds_since(launched_at, (tmp_path / "file").stat().st_mtime) == pytest.approx(5, abs=0.5)


def test_a_cache_with_another_number_of_models_than_one_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(WrongResult, match="0 models"):
        the_stored_model(tmp_path)


async def test_a_real_registry_has_what_the_origins_own_one_has(model: ServedModel, tmp_path: Path) -> None:
    if ensure_docker_registry() is None:
        pytest.skip("no docker-registry here, and none to be had from apt")
    (tmp_path / "registry").mkdir()
    with registry_with(model, tmp_path / "registry") as address:
        fetched = await fetch(FetchRequest(reference_of(Protocol.OCI, address, model.name), tmp_path / "cache"))
        model.check_stored(fetched.stored)
    with suppress(FileNotFoundError):
        shutil.rmtree(tmp_path / "registry")
