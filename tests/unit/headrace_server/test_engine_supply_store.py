"""Leases taken in threads: what they say of a model of a real store, and that none is lost."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace_models.errors import ModelNotFound, UnsafeModel
from headrace_models.store.model_store import ModelStore
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust
from headrace_server.engine.supply_store import open_in_thread, open_stored_model
from tests.fakes.arriving_models import ArrivingModel, publish_empty
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.fetching import KEY, FakeStore, FakeThreads

CACHE = Path("/cache")


@pytest.fixture
def original(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "m", num_layers=1)
    return tmp_path / "m"


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


def is_leased(model: StoredModel) -> bool:
    return model.status().leased


class TestStoredModel:
    """A model of a real store."""

    def test_it_is_leased_until_the_lease_is_closed(self, original: Path, tmp_path: Path) -> None:
        model = publish_empty(original, tmp_path / "cache")
        opened = open_stored_model(tmp_path / "cache", model.key)
        assert is_leased(model)
        opened.lease.close()
        assert not is_leased(model)

    def test_it_says_what_is_there_and_what_is_not(self, original: Path, tmp_path: Path) -> None:
        model = publish_empty(original, tmp_path / "cache")
        opened = open_stored_model(tmp_path / "cache", model.key)
        opened.lease.close()
        assert opened.skeleton == model.skeleton
        assert opened.facts.weight_bytes == model.index.weight_bytes
        weights = opened.weights
        assert (weights.key, weights.revision, weights.trust) == (model.key, model.revision, Trust.CHUNK)
        assert (weights.present_bytes, weights.total_bytes) == (0, model.index.weight_bytes)
        assert (weights.is_complete, weights.groups[0].name) == (False, "headers")

    @pytest.mark.parametrize("is_sealed", [True, False])
    def test_it_is_complete_once_it_is_sealed_because_its_bytes_may_have_to_be_proven_before(
        self, original: Path, tmp_path: Path, *, is_sealed: bool
    ) -> None:
        model = publish_empty(original, tmp_path / "cache", trust=Trust.FILE)
        with ArrivingModel(model, original) as arriving:
            arriving.bring_all()
            if is_sealed:
                arriving.writer.seal()
        opened = open_stored_model(tmp_path / "cache", model.key)
        opened.lease.close()
        assert opened.weights.present_bytes == opened.weights.total_bytes
        assert (opened.weights.is_complete, opened.weights.trust) == (is_sealed, Trust.FILE)

    def test_what_cannot_be_read_is_not_leased(self, original: Path, tmp_path: Path) -> None:
        model = publish_empty(original, tmp_path / "cache")
        (model.skeleton / "config.json").unlink()
        with pytest.raises(UnsafeModel, match="cannot be read"):
            open_stored_model(tmp_path / "cache", model.key)
        assert not is_leased(model)

    def test_what_is_gone_is_not_found(self, tmp_path: Path) -> None:
        ModelStore(tmp_path)
        with pytest.raises(ModelNotFound):
            open_stored_model(tmp_path, KEY)


class TestThreads:
    """Leases on their way."""

    async def test_a_lease_goes_to_the_one_who_asked(self, threads: ThreadPoolExecutor) -> None:
        store = FakeStore()
        opened = await open_in_thread(store.open, CACHE, KEY, threads=threads)
        assert opened.lease is store.leases[0]
        assert store.num_held == 1

    async def test_an_error_does_too(self, threads: ThreadPoolExecutor) -> None:
        with pytest.raises(ModelNotFound):
            await open_in_thread(FakeStore(gone={KEY}).open, CACHE, KEY, threads=threads)

    async def test_one_that_nobody_waits_for_any_more_goes_back_from_the_thread_that_takes_it(
        self, threads: ThreadPoolExecutor
    ) -> None:
        began, may_go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def on_open(_key: str) -> None:
            loop.call_soon_threadsafe(began.set)
            may_go_on.wait()

        store = FakeStore(on_open=on_open)
        opening = asyncio.create_task(open_in_thread(store.open, CACHE, KEY, threads=threads))
        await began.wait()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        may_go_on.set()
        await asyncio.wrap_future(threads.submit(int))  # the thread is through
        assert opening.cancelled()
        assert [lease.num_closed for lease in store.leases] == [1]

    async def test_one_that_is_there_already_goes_back_at_once(self) -> None:
        store, threads = FakeStore(), FakeThreads()
        opening = asyncio.create_task(open_in_thread(store.open, CACHE, KEY, threads=threads))
        await asyncio.sleep(0)
        threads.run_one()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert opening.cancelled()
        assert [lease.num_closed for lease in store.leases] == [1]

    async def test_one_that_no_thread_has_begun_with_is_never_taken(self) -> None:
        store, threads = FakeStore(), FakeThreads()
        opening = asyncio.create_task(open_in_thread(store.open, CACHE, KEY, threads=threads))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        threads.run_one()
        assert not store.leases
