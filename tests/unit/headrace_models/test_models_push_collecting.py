"""What is pushed of a directory, a GGUF file or a model of the store, and what is refused."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_models.errors import DigestMismatch, ModelNotFound, SourceChanged, UnsafeModel
from headrace_models.fetch.events import Completed, FetchEvent
from headrace_models.fetch.request import FetchRequest
from headrace_models.fetch.session import run_session
from headrace_models.push.collecting import contents_of_directory, contents_of_gguf, contents_of_stored
from headrace_models.push.contents import ModelContents, Role, read_whole
from headrace_models.push.hashing import hash_file
from headrace_models.reference import parse_reference
from headrace_models.store.model_store import ModelStore
from headrace_models.store.stored_model import StoredModel
from loadtests.origin.server import running_origin
from tests.fakes.checkpoints import write_checkpoint

GGUF = b"GGUF\x03\x00\x00\x00" + bytes(100)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "m", num_layers=2, hidden=32, shards=2)
    return tmp_path / "m"


def of_directory(directory: Path) -> ModelContents:
    return contents_of_directory(parse_reference(str(directory)))


def roles(contents: ModelContents) -> dict[str, Role]:
    return {file.path: file.role for file in contents.files}


def test_a_checkpoint_is_pushed_with_what_engines_and_people_read_and_no_more(model: Path) -> None:
    for name in ("README.md", "LICENSE", "USE_POLICY.md", "NOTICE.txt", "chat_template.jinja"):
        (model / name).write_text("text")
    for name in ("training_args.bin", "model.py", "notes.txt", "optimizer.pt", "headrace.seekindex.json", ".secret"):
        (model / name).write_text("left")
    contents = of_directory(model)
    assert roles(contents) == {
        "model-00001-of-00002.safetensors": Role.WEIGHTS,
        "model-00002-of-00002.safetensors": Role.WEIGHTS,
        "config.json": Role.CONFIG,
        "generation_config.json": Role.CONFIG,
        "model.safetensors.index.json": Role.CONFIG,
        "tokenizer.json": Role.CONFIG,
        "tokenizer_config.json": Role.CONFIG,
        "chat_template.jinja": Role.TEMPLATE,
        "README.md": Role.DOCUMENT,
        "USE_POLICY.md": Role.DOCUMENT,
        "LICENSE": Role.LICENCE,
        "NOTICE.txt": Role.LICENCE,
    }
    for file in contents.files:
        assert read_whole(file.content, 0, file.content.size_bytes) == (model / file.path).read_bytes()
    facts = contents.facts
    assert (facts.weights, facts.family, facts.precision, facts.max_length) == ("safetensors", "llama", "bfloat16", 256)
    assert any("training_args.bin" in note for note in contents.notes)


def test_weights_of_modules_are_weights(model: Path) -> None:
    (model / "modules.json").write_text(json.dumps([{"type": "x.Dense", "path": "2_Dense"}]))
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "config.json").write_text("{}")
    write_checkpoint(model / "other", num_layers=1, hidden=16)
    (model / "other" / "model.safetensors").rename(model / "2_Dense" / "model.safetensors")
    found = roles(of_directory(model))
    assert (found["2_Dense/model.safetensors"], found["2_Dense/config.json"]) == (Role.WEIGHTS, Role.CONFIG)
    assert not any(path.startswith("other/") for path in found)


def test_what_would_not_be_loaded_is_not_pushed(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such directory"):
        of_directory(tmp_path / "absent")
    os.symlink("/etc/hostname", model / "vocab.txt")
    with pytest.raises(UnsafeModel, match="leaves the directory"):
        of_directory(model)
    (model / "vocab.txt").unlink()
    (model / "config.json").write_text('{"auto_map": {"AutoModel": "x.y"}}')
    with pytest.raises(UnsafeModel, match="auto_map"):
        of_directory(model)


def test_a_link_inside_the_directory_is_the_file_that_it_leads_to(model: Path) -> None:
    (model / "config.json").rename(model / "real.json")
    os.symlink("real.json", model / "config.json")
    contents = of_directory(model)
    file = next(file for file in contents.files if file.path == "config.json")
    assert read_whole(file.content, 0, file.content.size_bytes) == (model / "real.json").read_bytes()


def test_a_file_that_changes_after_it_was_listed_is_noticed(model: Path) -> None:
    contents = of_directory(model)
    shard = contents.files[0]
    with (model / shard.path).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(SourceChanged, match="changed on disk"):
        hash_file(shard, None, lambda _num_bytes: None)


# ------------------------------------------------------------------------------------------------------------- GGUF


def test_a_gguf_file_is_pushed_by_itself_and_without_a_seek_index(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(GGUF)
    (tmp_path / "b.gguf").write_bytes(GGUF)
    contents = contents_of_gguf(tmp_path / "a.gguf")
    assert roles(contents) == {"a.gguf": Role.WEIGHTS}
    assert (contents.index, contents.facts.weights, contents.facts.weight_bytes) == (None, "gguf", len(GGUF))
    assert any("no seek index" in note for note in contents.notes)


def test_a_directory_with_one_gguf_model_is_that_model(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"q-0000{number}-of-00002.gguf").write_bytes(GGUF)
    (tmp_path / "README.md").write_text("text")
    expected = {"q-00001-of-00002.gguf": Role.WEIGHTS, "q-00002-of-00002.gguf": Role.WEIGHTS}
    assert roles(of_directory(tmp_path)) == {**expected, "README.md": Role.DOCUMENT}
    assert roles(contents_of_gguf(tmp_path / "q-00002-of-00002.gguf")) == expected


def test_several_gguf_models_in_one_directory_must_be_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(GGUF)
    (tmp_path / "b.gguf").write_bytes(GGUF)
    with pytest.raises(UnsafeModel, match="several GGUF models; push one of the files: a.gguf, b.gguf"):
        of_directory(tmp_path)


@pytest.mark.parametrize("name", ["q-00001-of-00002.gguf", "q-00002-of-00002.gguf"])
def test_a_gguf_model_with_a_part_missing_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GGUF)
    with pytest.raises(ModelNotFound, match="no such file"):
        contents_of_gguf(tmp_path / name)
    with pytest.raises(UnsafeModel, match="there are 1 of 2"):
        of_directory(tmp_path)


@pytest.mark.parametrize("data", [b"", b"GGUF", b"GGUF\x02\x00\x00\x00", b"PK\x03\x04" * 10])
def test_what_is_no_gguf_is_not_pushed_as_one(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(UnsafeModel, match="no GGUF file of version 3"):
        contents_of_gguf(tmp_path / "a.gguf")


# -------------------------------------------------------------------------------------------------------- the store


@pytest.fixture
def stored(model: Path, tmp_path: Path) -> Iterator[StoredModel]:
    with running_origin({"m": model}) as origin:
        reference = f"{origin.url}/files/m/"
        events: list[FetchEvent] = []
        run_session(FetchRequest(reference, tmp_path / "cache"), events.append, stop=threading.Event())
        assert isinstance(events[-1], Completed), events
        found = ModelStore(tmp_path / "cache").find(str(parse_reference(reference)))
        assert found is not None
        yield found


def test_a_fetched_model_is_pushed_from_the_store_with_an_index_of_its_shards(stored: StoredModel, model: Path) -> None:
    contents = contents_of_stored(stored)
    pushed = {file.path: read_whole(file.content, 0, file.content.size_bytes) for file in contents.files}
    written = json.loads(pushed.pop("model.safetensors.index.json"))
    own = json.loads((model / "model.safetensors.index.json").read_text())
    assert written["weight_map"] == own["weight_map"]
    assert written["metadata"] == own["metadata"]
    assert pushed == {path: (model / path).read_bytes() for path in pushed}
    assert set(pushed) == {path.name for path in model.iterdir()} - {"model.safetensors.index.json"}
    assert contents.fetched_from is None


def test_a_model_that_is_not_complete_is_refused_with_what_completes_it(stored: StoredModel) -> None:
    path = stored.directory / "state" / "0.map"
    marks = path.read_bytes()
    path.write_bytes(b"\0" + marks[1:])
    with pytest.raises(ModelNotFound, match=r"is not complete in the model cache \(99 %\): headrace pull http"):
        contents_of_stored(stored)
    path.write_bytes(marks)
    status = stored.directory / "state" / "status.json"
    status.write_text(status.read_text().replace('"sealed": true', '"sealed": false'))
    with pytest.raises(ModelNotFound, match=r"\(100 %\)"):
        contents_of_stored(stored)


def test_a_chunk_that_is_damaged_in_the_store_is_not_pushed(stored: StoredModel) -> None:
    contents = contents_of_stored(stored)
    shard = contents.files[1]
    path = stored.shard_path(1)
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert contents.index is not None
    with pytest.raises(DigestMismatch, match="headrace verify repairs it"):
        hash_file(shard, contents.index.layouts[1], lambda _num_bytes: None)
