"""Writing a model: what is refused, what is kept through a crash, when it is sealed and what that binds."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from headrace_models.errors import (
    DigestMismatch,
    ModelBusy,
    ModelNotFound,
    SourceDenied,
    StoreDamaged,
    StoreError,
    StoreUnusable,
)
from headrace_models.store import checking, model_writer, recovery
from headrace_models.store.files import write_part
from headrace_models.store.model_directory import ModelDirectory
from headrace_models.store.model_store import ModelStore
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust
from tests.fakes.stored_models import (
    FakeModel,
    bytes_on_disk,
    fake_model,
    fetched,
    overwrite,
    present,
    published,
    put,
    restart_machine,
    scratch_cache,
)


@pytest.fixture
def store() -> Iterator[ModelStore]:
    with scratch_cache() as directory:
        yield ModelStore(directory)


def _seal(model: StoredModel, fake: FakeModel) -> None:
    with model.writer() as writer:
        put(writer, fake)
        writer.seal()


@pytest.mark.parametrize("trust", Trust)
def test_a_fetched_model_is_the_shards_byte_for_byte(store: ModelStore, trust: Trust) -> None:
    fake = fake_model(trust, shards=3)
    model = fetched(store, fake)
    assert [model.shard_path(file).read_bytes() for file in range(3)] == list(fake.shards)
    status = model.status()
    assert status.complete
    assert status.sealed
    assert status.trust is trust
    assert status.proven is (trust is not Trust.NONE)
    assert status.present_bytes == status.total_bytes == fake.index.weight_bytes


def test_chunks_are_missing_in_execution_order_headers_first(store: ModelStore) -> None:
    fake = fake_model()
    with published(store, fake).writer() as writer:
        assert tuple(writer.missing()) == fake.chunks
        put(writer, fake, fake.chunks[:3])
        assert tuple(writer.missing()) == fake.chunks[3:]
        assert not writer.is_complete()
        put(writer, fake)
        assert writer.is_complete()
        assert not writer.missing()


def test_a_chunk_with_another_digest_leaves_no_trace(store: ModelStore) -> None:
    fake = fake_model(Trust.CHUNK)
    model = published(store, fake)
    with model.writer() as writer:
        with pytest.raises(DigestMismatch, match="chunk 1 of model-00000"):
            writer.put(0, 1, fake.wrong(0, 1))
        assert not writer.is_present(0, 1)
        assert not present(model)
        assert not any(bytes_on_disk(model, 0, 1))
        writer.put(0, 1, fake.data(0, 1))
        assert present(model) == {(0, 1)}


def test_a_chunk_of_another_length_is_refused(store: ModelStore) -> None:
    fake = fake_model()
    with published(store, fake).writer() as writer, pytest.raises(DigestMismatch, match="bytes, not 65536"):
        writer.put(0, 1, fake.data(0, 1)[:-1])


def test_a_chunk_that_is_there_is_not_written_again(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    with model.writer() as writer:
        writer.put(0, 1, memoryview(fake.data(0, 1)))
        writer.put(0, 1, fake.wrong(0, 1))
    assert bytes_on_disk(model, 0, 1) == fake.data(0, 1)


def test_many_threads_put_the_same_chunks_and_never_mix_two_answers(store: ModelStore) -> None:
    """Without known digests either answer may win, but bytes and digest must be of the same one."""
    fake = fake_model(layers=6)
    model = published(store, fake)

    def put_all(data: Callable[[int, int], bytes]) -> None:
        for chunk in fake.chunks:
            writer.put(*chunk, data(*chunk))

    with model.writer() as writer, ThreadPoolExecutor(8) as threads:
        done = [threads.submit(put_all, fake.data if at % 2 else fake.wrong) for at in range(8)]
        for putting in done:
            putting.result()
    assert present(model) == set(fake.chunks)
    assert model.check_integrity().is_sound
    for chunk in fake.chunks:
        assert bytes_on_disk(model, *chunk) in {fake.data(*chunk), fake.wrong(*chunk)}


def test_short_writes_are_continued(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_model()
    model = published(store, fake)
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, bytes(data)[:1000], at))
    with model.writer() as writer:
        writer.put(0, 1, fake.data(0, 1))
    assert bytes_on_disk(model, 0, 1) == fake.data(0, 1)


def test_there_is_one_writer_at_a_time(store: ModelStore) -> None:
    model = published(store, fake_model())
    with model.writer():
        assert model.status().fetching
        with pytest.raises(ModelBusy):
            model.writer()
    assert not model.status().fetching
    model.writer().close()


def test_a_closed_writer_writes_nothing(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    writer = model.writer()
    writer.close()
    with pytest.raises(StoreError, match="closed"):
        writer.put(0, 1, fake.data(0, 1))
    with pytest.raises(StoreError, match="closed"):
        writer.drop(0)
    assert not present(model)


def test_closing_waits_for_writes_under_way(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_model()
    model = published(store, fake)
    writer, inside, go_on = model.writer(), threading.Event(), threading.Event()

    def slow(path: Path, data: bytes | memoryview, begin: int) -> None:
        inside.set()
        go_on.wait()
        write_part(path, data, begin)

    monkeypatch.setattr(model_writer, "write_part", slow)
    with ThreadPoolExecutor(2) as threads:
        putting = threads.submit(writer.put, 0, 1, fake.data(0, 1))
        inside.wait()
        closing = threads.submit(writer.close)
        assert model.status().fetching
        assert not wait([closing], timeout=0.03).done
        go_on.set()
        putting.result()
        closing.result()
    assert present(model) == {(0, 1)}


def test_a_later_writer_goes_on_where_an_earlier_one_ended(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    with model.writer() as writer:
        put(writer, fake, fake.chunks[:4])
    with store.open_key(model.key).writer() as writer:
        assert tuple(writer.missing()) == fake.chunks[4:]


def test_a_model_with_missing_chunks_is_not_sealed(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    with model.writer() as writer:
        put(writer, fake, fake.chunks[1:])
        with pytest.raises(StoreError, match="chunks are missing"):
            writer.seal()
    assert not model.status().sealed


def test_shards_of_a_proof_that_does_not_hold_are_forgotten_and_fetched_again(store: ModelStore) -> None:
    """The last two shards share a proof: neither can be blamed alone, the first one stays."""
    fake = fake_model(Trust.FILE, shards=3)
    model = published(store, fake)
    with model.writer() as writer:
        writer.put(1, 1, fake.wrong(1, 1))
        put(writer, fake)
        assert model.status().trust is Trust.NONE, "complete, and nothing is proven"
        with pytest.raises(DigestMismatch, match=r"model-00001\.safetensors, model-00002\.safetensors are not"):
            writer.seal()
        assert {file for file, _chunk in present(model)} == {0}
        assert {file for file, _chunk in writer.missing()} == {1, 2}
        assert not model.status().sealed
        put(writer, fake)
        writer.seal()
    assert model.status().proven
    assert model.check_integrity().is_sound


def test_nothing_is_read_again_to_seal_a_model_with_known_digests(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_model(Trust.CHUNK)
    model = published(store, fake)
    with model.writer() as writer:
        put(writer, fake)
        monkeypatch.setattr(checking, "read_part", lambda *_: pytest.fail("a proof was read"))
        writer.seal()
    assert model.status().proven


def test_a_model_with_a_shard_cut_off_is_not_sealed(store: ModelStore) -> None:
    fake = fake_model(Trust.CHUNK)
    model = published(store, fake)
    with model.writer() as writer:
        put(writer, fake)
        os.truncate(model.shard_path(1), 1000)
        with pytest.raises(StoreDamaged, match="model-00001"):
            writer.seal()


def test_what_was_sealed_once_binds_what_is_fetched_again(store: ModelStore, tmp_path: Path) -> None:
    """Without digests of the source, the first bytes are the only ones that are ever accepted."""
    fake = fake_model()
    model = fetched(store, fake)
    _evict(model, 3)
    lost = sorted(set(fake.chunks) - present(model))
    assert lost
    with model.writer() as writer:
        with pytest.raises(DigestMismatch, match="than when it was fetched first; headrace rm"):
            writer.put(*lost[0], fake.wrong(*lost[0]))
        put(writer, fake)
        writer.seal()
    assert model.status().complete


def test_what_was_hashed_while_it_came_is_not_read_again_to_seal(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_model(Trust.FILE)
    model = published(store, fake)
    with model.writer() as writer:
        for place in fake.chunks:
            writer.put(*place, fake.data(*place))
            while writer.advance_proofs():
                continue
        monkeypatch.setattr(checking, "read_part", lambda *_: pytest.fail("a proof was read"))
        writer.seal()
    assert model.status().proven


def test_hashing_begins_anew_when_a_shard_was_dropped(store: ModelStore) -> None:
    fake = fake_model(Trust.FILE)
    model = published(store, fake)
    with model.writer() as writer:
        writer.put(0, 0, fake.data(0, 0))
        writer.put(0, 1, fake.wrong(0, 1))
        while writer.advance_proofs():
            continue
        put(writer, fake)
        with pytest.raises(DigestMismatch):
            writer.seal()
        put(writer, fake)
        writer.seal()
    assert model.check_integrity().is_sound


def test_a_proven_model_is_not_read_again_after_a_partial_eviction(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_model(Trust.FILE)
    model = fetched(store, fake)
    _evict(model, 3)
    assert model.status().proven, "what is left was proven, what comes is bound"
    monkeypatch.setattr(checking, "read_part", lambda *_: pytest.fail("a proof was read"))
    _seal(model, fake)
    assert model.status().trust is Trust.FILE


def test_a_proven_model_that_lost_its_recorded_digests_is_proven_anew(store: ModelStore) -> None:
    fake = fake_model(Trust.FILE)
    model = fetched(store, fake)
    _evict(model, 1)
    (lost,) = set(fake.chunks) - present(model)
    overwrite(model.directory / f"state/{lost[0]}.digests", lost[1] * 32, bytes(32))
    with model.writer() as writer:
        writer.put(*lost, fake.wrong(*lost))
        with pytest.raises(DigestMismatch):
            writer.seal()
        put(writer, fake)
        writer.seal()
    assert model.check_integrity().is_sound


def test_torn_chunks_of_another_boot_are_fetched_again_and_no_others(store: ModelStore) -> None:
    """A power loss: bytes, digests and marks reached the disk or not, each on its own."""
    fake = fake_model()
    model = published(store, fake)
    with model.writer() as writer:
        put(writer, fake, fake.chunks[:7])
    data, digest, mark = fake.chunks[2], fake.chunks[3], fake.chunks[4]
    begin, end = fake.index.layouts[data[0]].range_of(data[1])
    overwrite(model.shard_path(data[0]), begin, bytes(end - begin))
    overwrite(model.directory / f"state/{digest[0]}.digests", digest[1] * 32, bytes(32))
    overwrite(model.directory / f"state/{mark[0]}.map", mark[1], b"\0")
    restart_machine(model)
    assert model.status().in_doubt
    with model.reader() as reader:
        assert not reader.is_present(0, 0, 1), "nobody has looked at the bytes yet"
        with model.writer() as writer:
            assert set(fake.chunks[:7]) - present(model) == {data, digest, mark}
            assert reader.is_present(0, 0, 1)
            put(writer, fake)
            writer.seal()
    assert not model.status().in_doubt
    assert model.check_integrity().is_sound


def test_a_model_with_known_digests_recovers_by_those(store: ModelStore) -> None:
    fake = fake_model(Trust.CHUNK)
    model = published(store, fake)
    with model.writer() as writer:
        put(writer, fake)
    overwrite(model.shard_path(0), 0, b"torn")
    restart_machine(model)
    with model.writer() as writer:
        assert writer.missing() == [(0, 0)]


def test_a_hole_whose_mark_came_back_after_a_power_loss_is_noticed(store: ModelStore) -> None:
    """Marks are cleared without a flush before a hole is punched; an old map may be all that reached the disk."""
    fake = fake_model()
    model = fetched(store, fake)
    before = [(model.directory / f"state/{file}.map").read_bytes() for file in range(2)]
    _evict(model, 2)
    kept = present(model)
    for file, marks in enumerate(before):
        overwrite(model.directory / f"state/{file}.map", 0, marks)
    restart_machine(model)
    with model.writer():
        assert present(model) == kept


def test_a_sealed_model_needs_no_look_after_a_restart(store: ModelStore) -> None:
    model = fetched(store, fake_model())
    restart_machine(model)
    status = model.status()
    assert status.complete
    assert not status.in_doubt
    with model.reader() as reader:
        assert reader.is_present(0, 0, 10)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format":1}', b'{"format":2,"boot_id":"x"}', b"\xff" * 70_000]
)
def test_a_status_that_cannot_be_read_means_that_nothing_is_believed(store: ModelStore, content: bytes) -> None:
    fake = fake_model()
    model = fetched(store, fake)
    overwrite(model.shard_path(0), 200, b"flipped")
    (model.directory / "state/status.json").write_bytes(content)
    assert model.status().in_doubt
    with model.writer() as writer:
        assert len(writer.missing()) == 1


@pytest.mark.parametrize("damage", ["shard", "map", "digests"])
@pytest.mark.parametrize("how", ["cut", "gone", "longer"])
def test_files_with_other_sizes_are_mended_and_what_they_lost_is_fetched(
    store: ModelStore, damage: str, how: str
) -> None:
    fake = fake_model(Trust.FILE)
    model = fetched(store, fake)
    path = model.shard_path(0) if damage == "shard" else model.directory / f"state/0.{damage}"
    match how:
        case "cut":
            os.truncate(path, path.stat().st_size // 2)
        case "longer":
            os.truncate(path, path.stat().st_size * 2)
        case _:
            path.unlink()
    with model.writer() as writer:
        assert bool(writer.missing()) is (how != "longer")
        put(writer, fake)
        writer.seal()
    assert model.check_integrity().is_sound
    assert model.status().proven


def test_a_sealed_model_whose_map_lost_a_mark_is_no_longer_sealed_and_can_be(store: ModelStore) -> None:
    fake = fake_model()
    model = fetched(store, fake)
    overwrite(model.directory / "state/0.map", 1, b"\0")
    with model.writer() as writer:
        assert writer.missing() == [(0, 1)]
        assert not model.status().sealed
        put(writer, fake)
        writer.seal()
    assert model.status().sealed


def test_a_shard_that_vanishes_under_a_writer_is_damage(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    with model.writer() as writer:
        model.shard_path(0).unlink()
        with pytest.raises(StoreDamaged, match="is missing"):
            writer.put(0, 1, fake.data(0, 1))


def test_demands_are_told_once_and_nonsense_is_not(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    tensor = fake.index.tensors[-1]
    with model.reader() as reader, model.writer() as writer:
        reader.want(tensor.file, tensor.begin, tensor.end)
        reader.want(0, 5, 5)
        with (model.directory / "state/wanted").open("ab") as log:
            log.write(b"\xff" * 16 + bytes(12) + b"\1\0\0\0" + b"torn")
        (file, chunks), *others = writer.take_wanted()
        assert not others
        assert file == tensor.file
        assert list(chunks) == list(fake.index.layouts[file].covering(tensor.begin, tensor.end))
        assert not writer.take_wanted()


def test_a_log_of_demands_that_somebody_cut_is_read_from_its_new_beginning(store: ModelStore) -> None:
    model = published(store, fake_model())
    with model.reader() as reader, model.writer() as writer:
        for _time in range(3):
            reader.want(0, 0, 10)
        assert len(writer.take_wanted()) == 3
        os.truncate(model.directory / "state/wanted", 0)
        reader.want(0, 0, 10)
        assert len(writer.take_wanted()) == 1


def test_a_new_writer_does_not_begin_with_the_demands_of_the_last_one(store: ModelStore) -> None:
    model = published(store, fake_model())
    with model.reader() as reader:
        with model.writer():
            reader.want(0, 0, 10)
        with model.writer() as writer:
            assert not writer.take_wanted()
            reader.want(0, 0, 10)
            assert writer.take_wanted()


def test_a_failure_is_left_for_readers_until_the_next_fetch_begins(store: ModelStore) -> None:
    model = published(store, fake_model())
    with model.writer() as writer:
        writer.fail(SourceDenied("no\nentry" + "x" * 5000))
    assert (model.status().failure or "").startswith("no entryxxx")
    with model.writer() as writer:
        writer.clear_failure()
        writer.clear_failure()
    assert model.status().failure is None


def test_writing_a_model_that_was_removed_says_so(store: ModelStore) -> None:
    model = published(store, fake_model())
    store.remove(model.key)
    for use in (model.writer, model.reader, model.lease, model.status, model.check_integrity):
        with pytest.raises(ModelNotFound):
            use()


def test_a_model_published_anew_is_not_the_one_that_was_removed(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    store.remove(model.key)
    again = published(store, fake)
    assert again.key == model.key
    for use in (model.writer, model.lease):
        with pytest.raises(ModelNotFound):
            use()
    again.writer().close()


def test_a_local_model_is_never_written(store: ModelStore, tmp_path: Path) -> None:
    fake = fake_model()
    fake.local(tmp_path)
    with store.draft("file:///m", "r") as draft:
        model = draft.publish(fake.index, directory=tmp_path)
    with pytest.raises(StoreUnusable, match="used where it is"):
        model.writer()


def test_no_descriptor_is_kept_open_by_writing(store: ModelStore) -> None:
    fake = fake_model()
    before = len(os.listdir("/proc/self/fd"))
    model = fetched(store, fake)
    model.status()
    model.check_integrity()
    with model.writer() as writer:
        os.unlink(model.shard_path(0))
        writer.drop(0)
        with pytest.raises(StoreDamaged):
            writer.put(0, 1, fake.data(0, 1))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_status_on_disk_has_the_documented_form(store: ModelStore) -> None:
    model = fetched(store, fake_model())
    status = json.loads((model.directory / "state/status.json").read_bytes())
    assert set(status) == {"format", "boot_id", "sealed", "proven", "bound", "num_doubts"}


def _evict(model: StoredModel, num_chunks: int) -> None:
    """Take so many chunks from the model's end, as a full cache would."""
    ranges = [model.index.layouts[file].range_of(chunk) for file, chunk in model.index.chunks_in_order()]
    needed = sum(end - begin for begin, end in ranges[-num_chunks:])
    used = sum(path.lstat().st_blocks * 512 for path in [model.directory.parent, *model.directory.parent.rglob("*")])
    tight = ModelStore(model.directory.parents[1], max_bytes=used)
    tight.make_room(needed - 20_000 * num_chunks, protect="none-000000000000")


def test_a_reader_that_comes_while_wrong_bytes_are_dropped_believes_none_of_them(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_model(Trust.FILE, shards=1)
    model, tensor, seen = published(store, fake), fake.index.tensors[0], []

    def forget(directory: ModelDirectory, file: int) -> None:
        with model.reader() as reader:
            seen.append(reader.is_present(tensor.file, tensor.begin, tensor.end))
        recovery.forget(directory, file)

    monkeypatch.setattr(model_writer, "forget", forget)
    with model.writer() as writer:
        for file, chunk in fake.chunks:
            writer.put(file, chunk, fake.wrong(file, chunk))
        with pytest.raises(DigestMismatch):
            writer.seal()
        assert seen == [False]
        put(writer, fake)
        with model.reader() as reader:
            assert reader.is_present(tensor.file, tensor.begin, tensor.end), "what has come since is believed"
        writer.seal()
