"""Reading a model that is still arriving: what a reader believes, what it waits for, when it gives up."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace_models.errors import DigestMismatch, FetchFailed, ModelBusy, SourceDenied, StoreDamaged
from headrace_models.store import model_reader
from headrace_models.store.model_store import ModelStore
from headrace_models.store.model_writer import ModelWriter
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust
from tests.fakes.stored_models import (
    FakeModel,
    fake_model,
    fetched,
    overwrite,
    published,
    put,
    restart_machine,
    scratch_cache,
)


@pytest.fixture
def store() -> Iterator[ModelStore]:
    with scratch_cache() as directory:
        yield ModelStore(directory)


def _fetch_on_demand(writer: ModelWriter, fake: FakeModel, done: threading.Event) -> None:
    while not done.wait(0.001):
        for file, chunks in writer.take_wanted():
            put(writer, fake, [(file, chunk) for chunk in chunks])


def test_bytes_are_there_when_every_chunk_of_them_is(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    begin, middle, _end = (fake.index.layouts[0].range_of(chunk)[0] for chunk in (1, 2, 3 - 1))
    with model.reader() as reader, model.writer() as writer:
        assert not reader.is_present(0, begin, begin + 1)
        assert reader.is_present(0, begin, begin), "no bytes are always there"
        writer.put(0, 1, fake.data(0, 1))
        assert reader.is_present(0, begin, middle)
        assert not reader.is_present(0, begin, middle + 1)
        assert not reader.is_present(0, begin - 1, middle)


def test_a_reader_waits_for_what_it_demands_and_gets_it(store: ModelStore) -> None:
    fake = fake_model(layers=3)
    model = published(store, fake)
    done = threading.Event()
    with model.writer() as writer, model.reader() as reader, ThreadPoolExecutor(1) as threads:
        fetching = threads.submit(_fetch_on_demand, writer, fake, done)
        for tensor in reversed(fake.index.tensors):
            reader.wait_for(tensor.file, tensor.begin, tensor.end)
            data = reader.model.shard_path(tensor.file).read_bytes()[tensor.begin : tensor.end]
            assert data == fake.shards[tensor.file][tensor.begin : tensor.end]
        done.set()
        fetching.result()


def test_a_demand_is_made_again_when_the_log_was_lost(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_reader, "DEMAND_AGAIN_SECONDS", 0.01)
    fake = fake_model()
    model = published(store, fake)
    done = threading.Event()
    with model.writer() as writer, model.reader() as reader, ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(reader.wait_for, 0, 0, 10)
        while not writer.take_wanted():
            pass
        os.truncate(model.directory / "state/wanted", 0)
        fetching = threads.submit(_fetch_on_demand, writer, fake, done)
        waiting.result()
        done.set()
        fetching.result()


def test_a_failure_ends_the_wait_with_its_message(store: ModelStore) -> None:
    model = published(store, fake_model())
    with model.reader() as reader:
        with model.writer() as writer:
            writer.fail(SourceDenied("the registry wants a login"))
        with pytest.raises(FetchFailed, match=r"^the registry wants a login$"):
            reader.wait_for(0, 0, 10)


def test_a_failure_does_not_end_the_wait_while_somebody_fetches(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    failing = threading.Event()
    with model.reader() as reader, model.writer() as writer, ThreadPoolExecutor(1) as threads:
        writer.fail(SourceDenied("once more"))
        waiting = threads.submit(reader.wait_for, 0, 0, 10, patience_seconds=0.0)
        assert not failing.wait(0.03)
        assert not waiting.done()
        put(writer, fake)
        waiting.result()


def test_a_failure_from_before_is_believed_only_after_a_while(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fetch may just be starting again."""
    fake = fake_model()
    model = published(store, fake)
    with model.writer() as writer:
        writer.fail(SourceDenied("the failure of before"))
    with model.reader() as reader, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(reader.wait_for, 0, 0, 10)
        assert not threading.Event().wait(0.03)
        with model.writer() as writer:
            writer.clear_failure()
            put(writer, fake)
        waiting.result()
        monkeypatch.setattr(model_reader, "OLD_FAILURE_SECONDS", 0.0)
    again = published(store, fake_model(seed=1))
    with again.writer() as writer:
        writer.fail(SourceDenied("the failure of before"))
    with again.reader() as reader, pytest.raises(FetchFailed, match="the failure of before"):
        reader.wait_for(0, 0, 10)


def test_patience_ends_when_nobody_fetches(store: ModelStore) -> None:
    model = published(store, fake_model())
    with model.reader() as reader:
        with pytest.raises(FetchFailed, match=r"bytes 0 to 10 are missing, and nobody has been fetching .* 0\.01 s"):
            reader.wait_for(0, 0, 10, patience_seconds=0.01)
        with pytest.raises(FetchFailed):
            _published_file(store).reader().wait_until_proven(patience_seconds=0.0)


def test_bytes_that_came_with_the_last_breath_of_a_fetch_are_taken(store: ModelStore) -> None:
    """Marked, and then the lock was given back: between a look at the map and one at the lock."""
    fake = fake_model()
    model = published(store, fake)
    with model.reader() as reader:
        patience = model_reader._Patience(reader, 0.0, "nothing")
        with pytest.raises(FetchFailed):
            patience.wait(is_there=lambda: False)
        patience.wait(is_there=lambda: True)


def test_nothing_is_believed_after_a_restart_until_a_writer_has_looked(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    with model.writer() as writer:
        put(writer, fake)
    restart_machine(model)
    with model.reader() as reader:
        assert not reader.is_present(0, 0, 10)
        model.writer().close()
        assert reader.is_present(0, 0, 10)


def test_a_shard_that_somebody_cut_off_is_damage(store: ModelStore) -> None:
    model = fetched(store, fake_model())
    with model.reader() as reader:
        reader.wait_for(0, 0, 10)
        os.truncate(model.shard_path(0), 100)
        with pytest.raises(StoreDamaged, match=r"model-00000\.safetensors has 100 bytes of"):
            reader.wait_for(0, 0, 10)
        model.shard_path(1).unlink()
        with pytest.raises(StoreDamaged, match="has 0 bytes"):
            reader.wait_for(1, 0, 10)


def test_a_map_that_somebody_cut_off_hides_chunks_and_kills_nobody(store: ModelStore) -> None:
    model = fetched(store, fake_model())
    os.truncate(model.directory / "state/0.map", 1)
    with model.reader() as reader:
        assert reader.is_present(0, 0, 10)
        assert not reader.is_present(0, *model.index.layouts[0].range_of(1))
    assert not model.status().complete


def test_with_whole_file_digests_a_reader_can_wait_for_the_proof(store: ModelStore) -> None:
    fake = fake_model(Trust.FILE)
    model = published(store, fake)
    with model.reader() as reader, model.writer() as writer, ThreadPoolExecutor(1) as threads:
        put(writer, fake)
        waiting = threads.submit(reader.wait_until_proven)
        assert not threading.Event().wait(0.03)
        assert not waiting.done(), "complete is not proven"
        writer.seal()
        waiting.result()


def test_a_reader_whose_bytes_proved_wrong_is_told_even_if_the_right_ones_have_come_since(store: ModelStore) -> None:
    fake = fake_model(Trust.FILE)
    model = published(store, fake)
    with model.reader() as reader, model.writer() as writer:
        put(writer, fake, [place for place in fake.chunks if place != (0, 1)])
        writer.put(0, 1, bytes(len(fake.data(0, 1))))
        reader.wait_for(0, *fake.index.layouts[0].range_of(1), patience_seconds=0.0)
        with pytest.raises(DigestMismatch):
            writer.seal()
        put(writer, fake)
        writer.seal()
        with pytest.raises(DigestMismatch, match="load it again"):
            reader.wait_until_proven(patience_seconds=0.0)
        with model.reader() as later:
            later.wait_until_proven(patience_seconds=0.0)


def test_a_reader_is_told_of_chunks_that_a_check_found_wrong_meanwhile(store: ModelStore) -> None:
    model = fetched(store, fake_model(Trust.CHUNK))
    with model.reader() as reader:
        overwrite(model.shard_path(0), 100, b"other bytes")
        assert not model.check_integrity().is_sound
        with pytest.raises(DigestMismatch, match="load it again"):
            reader.wait_until_proven(patience_seconds=0.0)


@pytest.mark.parametrize("trust", [Trust.CHUNK, Trust.NONE])
def test_without_whole_file_digests_there_is_no_proof_to_wait_for(store: ModelStore, trust: Trust) -> None:
    with published(store, fake_model(trust)).reader() as reader:
        reader.wait_until_proven(patience_seconds=0.0)


def test_local_files_are_there_as_long_as_they_have_their_size(store: ModelStore, tmp_path: Path) -> None:
    fake = fake_model(Trust.FILE)
    model = _local(store, fake, tmp_path)
    with model.reader() as reader:
        reader.wait_for(0, 0, 10, patience_seconds=0.0)
        reader.wait_until_proven(patience_seconds=0.0)
        reader.want(0, 0, 10)
        overwrite(tmp_path / fake.index.files[0].path, fake.index.files[0].size_bytes, b"more")
        assert not reader.is_present(0, 0, 10)
        with pytest.raises(StoreDamaged, match="another size than when it was looked at first"):
            reader.wait_for(0, 0, 10)


def test_a_reader_keeps_its_model_until_it_is_closed(store: ModelStore) -> None:
    model = published(store, fake_model())
    reader = model.reader()
    assert model.status().leased
    with pytest.raises(ModelBusy, match="in use"):
        store.remove(model.key)
    reader.close()
    reader.close()
    assert not model.status().leased
    store.remove(model.key)


def test_a_lease_counts_as_use(store: ModelStore) -> None:
    model = published(store, fake_model())
    os.utime(model.directory / "lease.lock", (1000, 1000))
    assert model.status().last_used == 1000
    model.check_integrity()
    assert model.status().last_used == 1000, "a check is no use"
    model.lease().close()
    assert model.status().last_used > 1000


def _published_file(store: ModelStore) -> StoredModel:
    return published(store, fake_model(Trust.FILE, reference="hf://org/proven"))


def _local(store: ModelStore, fake: FakeModel, directory: Path) -> StoredModel:
    fake.local(directory)
    with store.draft("file:///m", "r") as draft:
        return draft.publish(fake.index, directory=directory)
