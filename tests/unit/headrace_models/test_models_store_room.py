"""Making room on a real file system: what goes, what stays, what is promised to others."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from headrace_models.errors import NoSpace
from headrace_models.store import removal, room, space
from headrace_models.store.eviction import Plan, Usage, plan_eviction
from headrace_models.store.locks import Hold, try_lock
from headrace_models.store.model_store import ModelStore
from headrace_models.store.space import allocated_bytes
from headrace_models.store.stored_model import StoredModel
from tests.fakes.stored_models import (
    TENSOR_BYTES,
    bytes_on_disk,
    fake_model,
    fetched,
    present,
    published,
    put,
    scratch_cache,
)

NEW = "new-000000000000"


@pytest.fixture
def cache() -> Iterator[Path]:
    with scratch_cache() as directory:
        yield directory


def _models(cache: Path, count: int) -> list[StoredModel]:
    """Sealed models, the least recently used first."""
    models = [fetched(ModelStore(cache), fake_model(seed=seed)) for seed in range(count)]
    for at, model in enumerate(models):
        os.utime(model.directory / "lease.lock", (1000 + at, 1000 + at))
    return models


def _full(cache: Path, *, spare: int = 0) -> ModelStore:
    """The store with a budget that leaves `spare` bytes."""
    ModelStore(cache)
    return ModelStore(cache, max_bytes=allocated_bytes(cache / "models") + spare)


def test_what_fits_evicts_nothing(cache: Path) -> None:
    (model,) = _models(cache, 1)
    _full(cache, spare=1000).make_room(1000, protect=NEW)
    assert model.status().sealed


def test_exactly_as_many_chunks_go_as_are_needed_from_the_end(cache: Path) -> None:
    (model,) = _models(cache, 1)
    fake = fake_model()
    _full(cache).make_room(2 * TENSOR_BYTES - 9000, protect=NEW)
    assert present(model) == set(fake.chunks[:-2])
    status = model.status()
    assert not status.sealed
    assert not status.complete
    assert all(not any(bytes_on_disk(model, *chunk)[4096:-4096]) for chunk in fake.chunks[-2:]), "holes were punched"
    assert model.check_integrity().is_sound


def test_the_budget_holds_after_evicting(cache: Path) -> None:
    _models(cache, 3)
    store = _full(cache)
    limit = allocated_bytes(cache / "models")
    for needed in (1, 50_000, 400_000, 700_000):
        store.make_room(needed, protect=NEW)
        assert allocated_bytes(cache / "models") <= limit - needed


def test_the_least_recently_used_model_goes_first_and_whole(cache: Path) -> None:
    first, second, third = _models(cache, 3)
    first.lease().close()
    size = second.status().allocated_bytes
    store = _full(cache)
    store.make_room(size + TENSOR_BYTES // 2, protect=NEW)
    assert {model.key for model in store.models()} == {first.key, third.key}
    assert len(present(third)) == len(fake_model().chunks) - 1
    assert first.status().sealed


@pytest.mark.parametrize("how", ["leased", "fetching", "pinned", "protected"])
def test_what_is_in_use_stays_and_says_why_there_is_no_room(cache: Path, how: str) -> None:
    (model,) = _models(cache, 1)
    with contextlib.ExitStack() as held:
        match how:
            case "leased":
                held.enter_context(model.lease())
            case "fetching":
                held.enter_context(model.writer())
            case "pinned":
                model.set_pin(pinned=True)
            case _:
                pass
        message = r"cache\.max_bytes\), and 1\.0 MB are needed: .* too few.*headrace rm, or raise cache\.max_bytes"
        with pytest.raises(NoSpace, match=message):
            _full(cache).make_room(1_000_000, protect=model.key if how == "protected" else NEW)
    assert model.status().sealed


def test_nothing_is_evicted_when_everything_would_not_be_enough(cache: Path) -> None:
    models = _models(cache, 2)
    with pytest.raises(NoSpace):
        _full(cache).make_room(10_000_000, protect=NEW)
    assert all(model.status().sealed for model in models)


def test_nothing_is_evicted_for_a_model_that_would_need_what_is_in_use_too(cache: Path) -> None:
    used, free = _models(cache, 2)
    with used.lease(), pytest.raises(NoSpace):
        _full(cache).make_room(free.status().allocated_bytes + 1, protect=NEW)
    assert free.status().sealed


def test_local_models_are_never_evicted(cache: Path, tmp_path: Path) -> None:
    fake = fake_model()
    fake.local(tmp_path)
    store = ModelStore(cache)
    with store.draft("file:///m", "r") as draft:
        draft.publish(fake.index, directory=tmp_path)
    with pytest.raises(NoSpace):
        _full(cache).make_room(1, protect=NEW)
    assert store.models()


def test_a_damaged_model_can_be_evicted(cache: Path) -> None:
    damaged, _sound = _models(cache, 2)
    (damaged.directory / "index.json").unlink()
    store = _full(cache)
    store.make_room(1, protect=NEW)
    assert not store.damaged()
    assert store.models()[0].status().sealed


def test_a_full_disk_evicts_as_a_full_budget_does(cache: Path) -> None:
    (model,) = _models(cache, 1)
    free = room.DISK_MARGIN_BYTES + 50_000
    store = ModelStore(cache, disk_free_bytes=lambda _models: free)
    store.make_room(50_000, protect=NEW)
    assert model.status().sealed
    store.make_room(50_001, protect=NEW)
    assert len(present(model)) == len(fake_model().chunks) - 1
    with pytest.raises(NoSpace, match=r"the disk of the model cache has 16\.8 MB left.*set cache\.dir"):
        store.make_room(1_000_000, protect=NEW)


def test_room_promised_to_a_fetch_under_way_is_not_given_away(cache: Path) -> None:
    fakes = [fake_model(seed=seed) for seed in range(2)]
    store = ModelStore(cache)
    first, second = (published(store, fake) for fake in fakes)
    store = _full(cache, spare=500_000)
    with first.writer() as writer:
        store.make_room(400_000, protect=first.key)
        with pytest.raises(NoSpace, match="being fetched"):
            store.make_room(200_000, protect=second.key)
        put(writer, fakes[0])
        with pytest.raises(NoSpace):
            store.make_room(200_000, protect=second.key)
        store.make_room(90_000, protect=second.key)
        writer.reserve(50_000)
        with pytest.raises(NoSpace):
            store.make_room(90_000, protect=second.key)
        writer.reserve(0)
        store.make_room(90_000, protect=second.key)


def test_a_fetch_that_is_over_reserves_nothing(cache: Path) -> None:
    store = ModelStore(cache)
    first, second = (published(store, fake_model(seed=seed)) for seed in range(2))
    store = _full(cache, spare=500_000)
    with first.writer():
        store.make_room(400_000, protect=first.key)
    store.make_room(400_000, protect=second.key)


def test_where_no_holes_can_be_punched_the_whole_model_goes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = _models(cache, 2)
    monkeypatch.setattr(removal, "punch_hole", lambda *_: False)
    store = _full(cache)
    store.make_room(1, protect=NEW)
    assert [model.key for model in store.models()] == [new.key]
    assert old.key != new.key


@pytest.mark.parametrize("how", ["leased", "pinned"])
def test_a_model_that_is_taken_into_use_after_planning_is_left_alone(
    cache: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    old, new = _models(cache, 2)
    with contextlib.ExitStack() as held:

        def plan_then_use(usages: Sequence[Usage], needed: int) -> Plan:
            made = plan_eviction(usages, needed)
            if how == "pinned":
                old.set_pin(pinned=True)
            elif not old.status().leased:
                held.enter_context(old.lease())
            return made

        monkeypatch.setattr(room, "plan_eviction", plan_then_use)
        _full(cache).make_room(1, protect=NEW)
        assert old.status().sealed
        assert not new.status().sealed


def test_nobody_else_evicts_meanwhile(cache: Path) -> None:
    (model,) = _models(cache, 1)
    store = _full(cache)
    with ThreadPoolExecutor(1) as threads:
        with try_lock(cache / "models/.store.lock", Hold.EXCLUSIVE) or pytest.fail("refused"):
            making = threads.submit(store.make_room, 1, protect=NEW)
            assert not wait([making], timeout=0.03).done
            assert model.status().sealed
        making.result()
    assert not model.status().sealed


def test_a_file_system_that_counts_late_loses_little_more_than_was_needed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZFS and btrfs free blocks some time after the call returns: then everything would seem to be needed."""
    model = fetched(ModelStore(cache), fake_model(layers=60))
    total = model.status().total_bytes
    store = _full(cache)
    frozen = allocated_bytes(cache / "models")
    monkeypatch.setattr(room, "allocated_bytes", lambda _path: frozen)
    monkeypatch.setattr(room, "EDGE_BYTES", 200_000)
    store.make_room(1_000_000, protect=NEW)
    gone = total - model.status().present_bytes
    assert 1_200_000 <= gone < 1_400_000


def test_blocks_left_by_a_killed_eviction_are_given_back_by_the_next(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model,) = _models(cache, 1)
    fake = fake_model()
    store = _full(cache)
    with monkeypatch.context() as patch:
        patch.setattr(removal, "punch_hole", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.make_room(3 * TENSOR_BYTES - 20_000, protect=NEW)
    assert len(present(model)) == len(fake.chunks) - 3
    before = model.status().allocated_bytes
    _full(cache).make_room(1, protect=NEW)
    assert len(present(model)) == len(fake.chunks) - 4
    assert model.status().allocated_bytes < before - 3 * TENSOR_BYTES
    assert model.check_integrity().is_sound


def test_sizes_are_written_for_people() -> None:
    assert [space.size_text(size) for size in (0, 1_500_000, 2_340_000_000)] == ["0.0 MB", "1.5 MB", "2.3 GB"]


def _interrupt(*_arguments: object) -> bool:
    raise KeyboardInterrupt
