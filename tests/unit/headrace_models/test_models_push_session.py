"""A whole push: one digest pins weights, index and chunk digests, and what breaks leaves nothing under a name."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_models.digest import Sha256, sha256_of_file
from headrace_models.errors import SourceChanged, SourceDenied
from headrace_models.index_building import index_of_directory
from headrace_models.locations import OciLocation
from headrace_models.push.blob_upload import Outcome
from headrace_models.push.collecting import contents_of_directory, contents_of_gguf
from headrace_models.push.contents import ModelContents
from headrace_models.push.formats import ArtifactFormat
from headrace_models.push.session import Pushed, PushOptions, Reporter, push_model
from headrace_models.reference import parse_reference
from headrace_models.seek_index_json import decode_known
from headrace_models.sources.base import SourceOptions
from headrace_models.trust import Trust
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.upload_registry import Asked, Refusal, UploadRegistry, refused, running_upload_registry

REPOSITORY = "team/model"


@pytest.fixture
def registry() -> Iterator[UploadRegistry]:
    with running_upload_registry() as running:
        yield running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "m", num_layers=2, hidden=32, shards=2)
    return tmp_path / "m"


def contents_of(directory: Path) -> ModelContents:
    return contents_of_directory(parse_reference(str(directory)))


def push(
    registry: UploadRegistry,
    contents: ModelContents,
    *,
    form: ArtifactFormat = ArtifactFormat.MODELPACK,
    report: Reporter | None = None,
) -> Pushed:
    location = OciLocation.parse(f"{registry.address}/{REPOSITORY}:v1")
    options = PushOptions(SourceOptions(Path("unused")), form, patience_seconds=0.0)
    return push_model(contents, location, options, report)


@pytest.mark.parametrize("form", list(ArtifactFormat))
def test_one_digest_pins_the_files_the_index_and_the_digests_of_all_chunks(
    registry: UploadRegistry, model: Path, form: ArtifactFormat
) -> None:
    pushed = push(registry, contents_of(model), form=form)
    manifest = registry.manifests["v1"]
    assert str(pushed.digest) == f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    blobs = registry.blobs[REPOSITORY]
    files = {
        layer["annotations"]["org.cncf.model.filepath"]: blobs[layer["digest"]]
        for layer in json.loads(manifest)["layers"]
    }
    written = decode_known(files.pop("headrace.seekindex.json"))
    assert files == {path.name: path.read_bytes() for path in model.iterdir()}
    assert written is not None
    expected = index_of_directory(model, "x", digests=True)
    assert [file.chunk_digests for file in written.index.files] == [file.chunk_digests for file in expected.files]
    assert [file.digest for file in written.index.files] == [sha256_of_file(model / f.path) for f in expected.files]
    assert written.index.tensors == expected.tensors
    assert written.headers == {f.path: (model / f.path).read_bytes()[: f.data_begin] for f in expected.files}
    assert str(model) not in repr(written.index)
    assert (pushed.trust, pushed.num_files, pushed.total_bytes) == (
        Trust.CHUNK,
        len(files),
        sum(map(len, files.values())),
    )
    config = json.loads(manifest)["config"]
    assert len(blobs[config["digest"]]) == config["size"]


def test_the_same_files_make_the_same_digest_wherever_and_whenever(
    registry: UploadRegistry, model: Path, tmp_path: Path
) -> None:
    first = push(registry, contents_of(model))
    write_checkpoint(tmp_path / "elsewhere", num_layers=2, hidden=32, shards=2)
    for path in (tmp_path / "elsewhere").iterdir():
        os.utime(path, (1, 1))
    again = push(registry, contents_of(tmp_path / "elsewhere"))
    assert again.digest == first.digest
    assert set(again.blob_bytes) == {Outcome.PRESENT}
    assert set(first.blob_bytes) == {Outcome.UPLOADED}


def test_the_manifest_comes_last_and_not_at_all_where_a_blob_is_refused(registry: UploadRegistry, model: Path) -> None:
    shard = str(sha256_of_file(model / "model-00002-of-00002.safetensors"))

    def refuse(asked: Asked) -> Refusal | None:
        if asked.method == "PUT" and asked.query.get("digest") == [shard]:
            return refused(403, "quota exceeded")
        return None

    registry.judge = refuse
    with pytest.raises(SourceDenied, match="quota exceeded"):
        push(registry, contents_of(model))
    assert not registry.manifests
    registry.judge = lambda _asked: None
    before = len(registry.asked)
    pushed = push(registry, contents_of(model))
    assert pushed.blob_bytes[Outcome.PRESENT] > 0
    assert registry.asked[-1].path.endswith("/manifests/v1")
    assert len(registry.asked) > before + 1


def test_a_file_that_changes_between_hashing_and_sending_ends_the_push(registry: UploadRegistry, model: Path) -> None:
    contents = contents_of(model)
    path = model / "model-00001-of-00002.safetensors"

    def change(asked: Asked) -> Refusal | None:
        if asked.method == "HEAD":
            os.utime(path, (1, 1))
        return None

    registry.judge = change
    with pytest.raises(SourceChanged, match="changed on disk"):
        push(registry, contents)
    assert not registry.manifests


def test_a_gguf_model_is_worth_the_digests_of_its_files(registry: UploadRegistry, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(1000))
    pushed = push(registry, contents_of_gguf(tmp_path / "a.gguf"), form=ArtifactFormat.DOCKER)
    assert (pushed.trust, pushed.index_bytes, pushed.num_files) == (Trust.FILE, 0, 1)
    assert Sha256(hashlib.sha256(registry.manifests["v1"]).hexdigest()) == pushed.digest


def test_both_passes_are_told_to_their_end(registry: UploadRegistry, model: Path) -> None:
    hashed: list[tuple[int, int]] = []
    sent: list[tuple[int, int]] = []
    report = Reporter(lambda *told: hashed.append(told), lambda *told: sent.append(told))
    for _ in range(2):
        push(registry, contents_of(model), report=report)
        assert hashed[-1][0] == hashed[-1][1] > 0
        assert sent[-1][0] == sent[-1][1] > hashed[-1][1]


def test_an_interrupt_while_bytes_are_sent_leaves_no_thread_and_no_name(registry: UploadRegistry, model: Path) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    for report in (Reporter(on_hashed=interrupt), Reporter(on_sent=interrupt)):
        with pytest.raises(KeyboardInterrupt):
            push(registry, contents_of(model), report=report)
    assert not registry.manifests
