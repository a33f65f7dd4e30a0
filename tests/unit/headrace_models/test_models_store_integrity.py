"""Looking through a model: what is found, what is dropped, what is only reported."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_models.errors import ModelBusy
from headrace_models.store.integrity import IntegrityReport
from headrace_models.store.model_store import ModelStore
from headrace_models.trust import Trust
from tests.fakes.stored_models import (
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


@pytest.mark.parametrize("trust", Trust)
def test_a_flipped_byte_is_found_and_its_chunk_dropped(store: ModelStore, trust: Trust) -> None:
    fake = fake_model(trust)
    model = fetched(store, fake)
    begin, _end = fake.index.layouts[1].range_of(2)
    overwrite(model.shard_path(1), begin + 5, bytes([bytes_on_disk(model, 1, 2)[5] ^ 0x10]))
    found = model.check_integrity(repair=False)
    assert (found.wrong_chunks, found.repaired) == (((1, 2),), False)
    assert present(model) == set(fake.chunks), "only looked"
    assert model.check_integrity().repaired
    assert set(fake.chunks) - present(model) == {(1, 2)}
    status = model.status()
    assert (status.sealed, status.complete, status.in_doubt) == (False, False, False)
    with model.writer() as writer:
        put(writer, fake)
        writer.seal()
    assert model.check_integrity().is_sound
    assert model.status().complete


def test_a_flipped_mark_is_found(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    overwrite(model.directory / "state/0.map", 1, b"\1")
    assert model.check_integrity().wrong_chunks == ((0, 1),)
    assert not present(model)


def test_a_shard_cut_off_by_somebody_is_found(store: ModelStore) -> None:
    fake = fake_model(Trust.CHUNK)
    model = fetched(store, fake)
    os.truncate(model.shard_path(0), fake.index.layouts[0].range_of(2)[0] + 10)
    report = model.check_integrity()
    assert report.wrong_sizes == (fake.index.files[0].path,)
    assert (0, 2) in report.wrong_chunks
    assert model.shard_path(0).stat().st_size == fake.index.files[0].size_bytes
    assert {(0, 0), (0, 1)} <= present(model)
    assert (0, 2) not in present(model)


def test_marks_that_a_sealed_model_lost_are_found(store: ModelStore) -> None:
    model = fetched(store, fake_model())
    overwrite(model.directory / "state/0.map", 1, b"\0")
    assert model.check_integrity(repair=False).wrong_chunks == ((0, 1),)
    model.check_integrity()
    assert not model.status().sealed


def test_files_whose_proof_does_not_hold_are_dropped_though_every_chunk_is_as_recorded(store: ModelStore) -> None:
    fake = fake_model(Trust.FILE, shards=3)
    model = published(store, fake)
    with model.writer() as writer:
        writer.put(2, 1, fake.wrong(2, 1))
        put(writer, fake)
    report = model.check_integrity()
    assert report.unproven == (fake.index.files[1].path, fake.index.files[2].path)
    assert {file for file, _chunk in present(model)} == {0}


def test_a_check_after_a_restart_spares_the_next_writer_the_same(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    with model.writer() as writer:
        put(writer, fake, fake.chunks[:3])
    restart_machine(model)
    report = model.check_integrity()
    assert report == IntegrityReport(report.checked_bytes, (), (), (), repaired=False)
    assert not model.status().in_doubt


def test_progress_is_told_up_to_the_end(store: ModelStore) -> None:
    fake = fake_model(Trust.FILE)
    told: list[tuple[int, int]] = []
    report = fetched(store, fake).check_integrity(on_progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (report.checked_bytes, report.checked_bytes) == (2 * fake.index.weight_bytes,) * 2
    assert [done for done, _total in told] == sorted(done for done, _total in told)


def test_a_model_being_fetched_is_looked_at_but_not_repaired(store: ModelStore) -> None:
    fake = fake_model()
    model = published(store, fake)
    with model.writer() as writer:
        put(writer, fake)
        assert model.check_integrity(repair=False).is_sound
        with pytest.raises(ModelBusy):
            model.check_integrity()


def test_local_files_are_checked_and_never_changed(store: ModelStore, tmp_path: Path) -> None:
    fakes = {trust: fake_model(trust, seed=number) for number, trust in enumerate(Trust)}
    for trust, fake in fakes.items():
        folder = tmp_path / trust
        fake.local(folder)
        with store.draft(f"file:///{trust}", "r") as draft:
            model = draft.publish(fake.index, directory=folder)
        assert model.check_integrity().is_sound
        overwrite(folder / fake.index.files[0].path, 5, b"\xff")
        report = model.check_integrity()
        assert bool(report.wrong_chunks) is (trust is Trust.CHUNK)
        assert bool(report.unproven) is (trust is Trust.FILE)
        overwrite(folder / fake.index.files[1].path, fake.index.files[1].size_bytes, b"x")
        report = model.check_integrity()
        assert report.wrong_sizes == (fake.index.files[1].path,)
        assert not report.repaired
        assert (folder / fake.index.files[1].path).read_bytes() == fake.shards[1] + b"x"
