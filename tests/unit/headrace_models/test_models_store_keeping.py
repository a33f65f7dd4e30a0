"""The store as a whole: publication, references, removal, what dead processes leave, damage, local models."""

import json
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace_models.errors import ModelBusy, ModelNotFound, StoreDamaged, StoreUnusable
from headrace_models.store.model_directory import model_key
from headrace_models.store.model_store import ModelStore
from headrace_models.store.records import is_key
from headrace_models.trust import Trust
from tests.fakes.stored_models import fake_model, fetched, published, put, scratch_cache


@pytest.fixture
def cache() -> Iterator[Path]:
    with scratch_cache() as directory:
        yield directory


@pytest.fixture
def store(cache: Path) -> ModelStore:
    return ModelStore(cache)


@pytest.mark.parametrize(
    ("reference", "slug"),
    [
        ("hf://meta-llama/Llama-3.1-8B@main", "llama-3-1-8b"),
        ("embedded:smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("oci://registry.example:5000/team/model:v1", "model-v1"),
        ("oci://registry.example/model@sha256:" + 64 * "0", "model"),
        ("https://host/dir/?token=x", "dir"),
        ("file:///", "file"),
        ("file:///modèle/日本", "model"),
        ("s3://bucket/" + 100 * "x", 40 * "x"),
    ],
)
def test_a_key_can_be_recognised_and_is_a_safe_name(reference: str, slug: str) -> None:
    key = model_key(reference, "r")
    assert re.fullmatch(re.escape(slug) + "-[0-9a-f]{12}", key)
    assert is_key(key)
    assert key != model_key(reference, "r2")


@pytest.mark.parametrize("key", ["", "..", "refs", "a/b-000000000000", ".x-000000000000", "x", "x-00000000000g"])
def test_other_names_are_no_keys(store: ModelStore, key: str) -> None:
    assert not is_key(key)
    with pytest.raises(ModelNotFound):
        store.open_key(key)
    with pytest.raises(ModelNotFound):
        store.remove(key)


def test_a_published_model_can_be_found_by_whoever_opens_the_store(store: ModelStore, cache: Path) -> None:
    fake = fake_model()
    model = published(store, fake)
    store.remember("hf://org/tiny@main", model)
    for other in (store, ModelStore(cache)):
        for found in (
            other.find("hf://org/tiny@main"),
            other.get(fake.index.reference, fake.index.revision),
            other.open_key(model.key),
            *other.models(),
        ):
            assert found is not None
            assert (found.key, found.reference, found.revision) == (model.key, "hf://org/tiny", "r0")
            assert found.index == fake.index
            assert (found.skeleton / "config.json").read_text() == "{}"
    assert store.find("hf://org/tiny") is None
    assert store.get("hf://org/tiny", "r1") is None
    assert (cache / "models").stat().st_mode & 0o777 == 0o700


def test_a_new_model_takes_hardly_any_room(store: ModelStore) -> None:
    model = published(store, fake_model(Trust.CHUNK, layers=30))
    status = model.status()
    assert status.total_bytes > 4_000_000
    assert status.allocated_bytes < 200_000
    assert status.present_bytes == 0
    assert [group for group, _present, _total in status.present_by_group][:3] == ["headers", "embedding", "layer.0"]
    assert sum(total for _group, _present, total in status.present_by_group) == status.total_bytes


def test_present_bytes_are_counted_by_group(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    with model.writer() as writer:
        put(writer, fake, fake.chunks[:4])  # two headers, the embedding, half of the first layer
    groups = {group: present for group, present, _total in model.status().present_by_group}
    headers = sum(file.data_begin for file in fake.index.files)
    assert groups == {"headers": headers, "embedding": 65536, "layer.0": 65536, "layer.1": 0, "head": 0}


def test_what_a_draft_did_not_publish_is_gone(store: ModelStore, cache: Path) -> None:
    with store.draft("hf://org/tiny", "r") as draft:
        (draft.skeleton / "config.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt), store.draft("hf://org/tiny", "r"):
        raise KeyboardInterrupt
    assert not store.models()
    assert not list((cache / "models").glob(".*.tmp-*"))


def test_of_two_makers_of_a_model_the_second_finds_it_made(store: ModelStore) -> None:
    fake = fake_model()
    waiting = threading.Event()

    def make() -> object:
        with store.draft("hf://org/tiny", "r0", while_waiting=waiting.set) as draft:
            return draft.existing and draft.publish(fake.index)

    with ThreadPoolExecutor(1) as threads:
        with store.draft("hf://org/tiny", "r0") as draft:
            second = threads.submit(make)
            assert waiting.wait(5)
            model = draft.publish(fake.index)
        found = second.result()
    assert getattr(found, "key", None) == model.key


def test_a_reference_stands_for_what_it_resolved_to_last(store: ModelStore, cache: Path) -> None:
    old, new = published(store, fake_model()), published(store, fake_model(seed=1))
    for model in (old, new):
        store.remember("hf://org/tiny", model)
    found = store.find("hf://org/tiny")
    assert found is not None
    assert found.key == new.key
    store.remove(new.key)
    assert store.find("hf://org/tiny") is None
    assert not list((cache / "models/refs").glob("*.json"))


@pytest.mark.parametrize("content", [b"", b"{", b'{"format":1}', b'"x"', b"\xff"])
def test_a_damaged_reference_is_an_unknown_one(store: ModelStore, cache: Path, content: bytes) -> None:
    store.remember("hf://org/tiny", published(store, fake_model()))
    (entry,) = (cache / "models/refs").glob("*.json")
    entry.write_bytes(content)
    assert store.find("hf://org/tiny") is None
    store.sweep()
    assert not entry.exists()


def test_a_removed_model_leaves_nothing_but_locks(store: ModelStore, cache: Path) -> None:
    model = fetched(store, fake_model())
    model.set_pin(pinned=True)
    allocated = model.status().allocated_bytes
    assert store.remove(model.key) == allocated > 300_000
    assert all(name.endswith(".lock") or name == "refs" for name in os.listdir(cache / "models"))
    with pytest.raises(ModelNotFound):
        store.remove(model.key)


def test_nothing_is_removed_from_under_anybody(store: ModelStore) -> None:
    model = published(store, fake_model())
    with model.lease(), pytest.raises(ModelBusy, match="in use"):
        store.remove(model.key)
    with model.writer(), pytest.raises(ModelBusy, match="being fetched"):
        store.remove(model.key)
    with store.draft(model.reference, model.revision), pytest.raises(ModelBusy, match="being prepared"):
        store.remove(model.key)
    assert store.models()


def test_dead_drafts_and_removals_are_swept_and_living_ones_are_not(store: ModelStore, cache: Path) -> None:
    models = cache / "models"
    for name in (".tiny-000000000000.tmp-abcdefgh", f".{model_key('hf://org/tiny', 'r')}.tmp-ijklmnop"):
        (models / name / "removed/shards").mkdir(parents=True)
    with store.draft("hf://org/tiny", "r") as draft:
        (models / ".lock-probe-1-1").touch()
        os.utime(models / ".lock-probe-1-1", (0, 0))
        (models / ".lock-probe-2-2").touch()
        store.sweep()
        assert draft.skeleton.is_dir()
        left = {name for name in os.listdir(models) if ".tmp-" in name or "probe" in name}
        assert left == {draft.skeleton.parent.name, ".lock-probe-2-2"}


def test_references_to_models_that_are_gone_are_swept(store: ModelStore, cache: Path) -> None:
    model = published(store, fake_model())
    store.remember("hf://org/tiny", model)
    model.directory.rename(cache / "elsewhere")
    store.sweep()
    assert not list((cache / "models/refs").glob("*.json"))


@pytest.mark.parametrize("name", ["index.json", "record.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"format":1,"reference":1}', b"[" * 100_000])
def test_a_damaged_model_is_reported_and_can_be_made_anew_or_removed(
    store: ModelStore, name: str, content: bytes | None
) -> None:
    fake = fake_model()
    model, sound = published(store, fake), published(store, fake_model(seed=1))
    if content is None:
        (model.directory / name).unlink()
    else:
        (model.directory / name).write_bytes(content)
    assert [found.key for found in store.models()] == [sound.key]
    ((key, why),) = store.damaged()
    assert key == model.key
    assert "\n" not in why
    with pytest.raises(StoreDamaged):
        store.open_key(model.key)
    assert store.get(fake.index.reference, fake.index.revision) is None
    again = published(store, fake)
    assert again.key == model.key
    assert not store.damaged()
    (again.directory / "record.json").unlink()
    store.remove(model.key)
    assert [found.key for found in store.models()] == [sound.key]


def test_a_damaged_model_in_use_is_not_replaced(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    with model.lease():
        (model.directory / "index.json").write_bytes(b"")
        with pytest.raises(ModelBusy, match="in use"):
            published(store, fake)


def test_a_local_model_stays_where_it_is(store: ModelStore, tmp_path: Path) -> None:
    fake = fake_model(Trust.FILE)
    fake.local(tmp_path)
    with store.draft("file:///m", "r") as draft:
        model = draft.publish(fake.index, directory=tmp_path)
    assert model.is_local
    assert model.shard_path(1) == tmp_path / fake.index.files[1].path
    status = model.status()
    assert (status.complete, status.trust, status.in_doubt) == (True, Trust.NONE, False)
    assert status.allocated_bytes < 100_000
    os.truncate(tmp_path / fake.index.files[0].path, 10)
    assert model.status().present_bytes == fake.index.files[1].size_bytes
    assert not model.status().complete
    store.remove(model.key)
    assert (tmp_path / fake.index.files[1].path).read_bytes() == fake.shards[1]


def test_what_is_known_of_a_local_models_bytes_is_remembered(store: ModelStore, cache: Path, tmp_path: Path) -> None:
    fake = fake_model()
    fake.local(tmp_path)
    with store.draft("embedded:tiny", "r") as draft:
        key = draft.publish(fake.index, directory=tmp_path, trust=Trust.FILE).key
    assert ModelStore(cache).open_key(key).status().trust is Trust.FILE


def test_a_record_of_a_local_directory_as_it_was_before_is_swept(store: ModelStore, tmp_path: Path) -> None:
    fake = fake_model()
    fake.local(tmp_path)
    models = []
    for revision in ("r1", "r2", "r3"):
        with store.draft("file:///m", revision) as draft:
            models.append(draft.publish(fake.index, directory=tmp_path))
    store.remember("file:///m", models[2])
    with models[1].lease():
        store.sweep()
    assert {model.revision for model in store.models()} == {"r2", "r3"}, "r2 was in use"
    assert (tmp_path / fake.index.files[1].path).exists()


def test_a_cache_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnusable, match=r"^cannot use the model cache .*: Not a directory$"):
        ModelStore(tmp_path / "file")


def test_a_pin_is_shown_and_can_be_taken_back(store: ModelStore) -> None:
    model = published(store, fake_model())
    for pinned in (True, True, False, False):
        model.set_pin(pinned=pinned)
        assert model.status().pinned is pinned


def test_records_are_written_in_the_documented_form(store: ModelStore) -> None:
    model = published(store, fake_model())
    record = json.loads((model.directory / "record.json").read_bytes())
    assert record == {"format": 1, "reference": "hf://org/tiny", "revision": "r0", "directory": None, "trust": None}
