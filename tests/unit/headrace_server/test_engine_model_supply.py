"""Fetches of a server's models: their order, what engines wait for, and that nothing is left of any."""

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace_models.errors import ModelNotFound
from headrace_models.fetch.client import FetchProcess
from headrace_models.fetch.events import Failed
from headrace_models.fetch.request import FetchRequest
from headrace_server.domain import ModelId
from headrace_server.engine.delivery import Order
from headrace_server.engine.model_supply import ModelSupply
from headrace_server.errors import EngineFault
from tests.fakes.fetching import FACTS, FakeFetch, FakeFetches, FakeStore, completed, indexed, order, progress

A, B = ModelId("a"), ModelId("b")
HF_A, HF_B = "hf://org/a", "hf://org/b"


class Watcher:
    """Waits for what changes; a thread is behind it, so nothing else can be awaited."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def __call__(self, _model: ModelId) -> None:
        self._changed.set()

    async def until_next(self) -> None:
        await self._changed.wait()
        self._changed.clear()


@asynccontextmanager
async def supplying(
    fetches: FakeFetches, store: FakeStore, watcher: Watcher | None = None
) -> AsyncIterator[ModelSupply]:
    """A supply of `a` and `b` that runs; ended, and its leases given back, whatever the test did."""
    orders = [order(A, HF_A), order(B, HF_B)]
    supply = ModelSupply(orders, on_change=watcher or Watcher(), open_fetch=fetches.open, open_model=store.open)
    running = asyncio.create_task(supply.run())
    try:
        yield supply
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        supply.close()
    assert not any(lease.is_held for lease in store.leases)


@pytest.fixture
def fetches() -> FakeFetches:
    return FakeFetches(HF_A, HF_B)


@pytest.mark.timeout(20)
class TestSupply:
    """A supply of two models."""

    async def test_the_first_fetch_starts_before_anyone_has_waited_for_it(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore()):
            await asyncio.sleep(0)
            assert fetches[HF_A].started.is_set()
            assert not fetches[HF_B].started.is_set()

    async def test_an_engine_gets_the_skeleton_the_key_and_the_facts(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore()) as supply:
            fetches[HF_A].tell(indexed("a-0123456789ab"))
            supplied = await supply.indexed(A)
            assert (supplied.key, supplied.facts) == ("a-0123456789ab", FACTS)
            assert supplied.skeleton == Path("/cache/models/a-0123456789ab/skeleton")
            assert supplied.cache_dir == Path("/cache")

    async def test_the_next_fetch_starts_when_the_one_before_is_complete_and_not_sooner(
        self, fetches: FakeFetches
    ) -> None:
        async with supplying(fetches, FakeStore()) as supply:
            fetches[HF_A].tell(indexed())
            await supply.indexed(A)
            assert not fetches[HF_B].started.is_set()
            fetches[HF_A].tell(progress(50), completed())
            fetches[HF_A].end()
            await fetches[HF_B].started.wait()
            weights = supply.weights(A)
            assert weights is not None
            assert weights.is_complete

    async def test_a_fetch_that_fails_fails_its_model_and_the_next_one_starts(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore()) as supply:
            fetches[HF_A].tell(Failed("SourceDenied", "401 from example: set HF_TOKEN"))
            fetches[HF_A].end()
            with pytest.raises(EngineFault, match="set HF_TOKEN"):
                await supply.indexed(A)
            assert supply.failure(A) == "401 from example: set HF_TOKEN"
            fetches[HF_B].tell(indexed())
            await supply.indexed(B)
            assert supply.failure(B) is None

    async def test_a_failure_after_the_index_can_be_asked_for(self, fetches: FakeFetches) -> None:
        watcher = Watcher()
        async with supplying(fetches, FakeStore(), watcher) as supply:
            fetches[HF_A].tell(indexed())
            await supply.indexed(A)
            assert supply.failure(A) is None
            fetches[HF_A].tell(progress(50), Failed("NoSpace", "the disk is full"))
            while supply.failure(A) is None:
                await watcher.until_next()
            assert supply.failure(A) == "the disk is full"

    async def test_every_supplied_model_is_leased_until_the_supply_is_closed(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            for name, reference in ((A, HF_A), (B, HF_B)):
                fetches[reference].tell(indexed(), completed())
                fetches[reference].end()
                await supply.indexed(name)
            assert [lease.is_held for lease in store.leases] == [True, True]

    async def test_cancelling_ends_the_fetch_under_way_and_starts_no_other(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore()) as supply:
            fetches[HF_A].tell(indexed())
            await supply.indexed(A)
        assert fetches[HF_A].is_stopped
        assert fetches[HF_A].is_read_to_its_end
        assert not fetches[HF_B].started.is_set()

    async def test_cancelling_at_once_leaves_no_child_either(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore()):
            await asyncio.sleep(0)
        assert fetches[HF_A].is_stopped
        assert fetches[HF_A].is_read_to_its_end

    async def test_a_model_that_cannot_be_opened_fails_and_its_fetch_is_stopped(self, fetches: FakeFetches) -> None:
        store = FakeStore(error=ModelNotFound("removed meanwhile"))
        async with supplying(fetches, store) as supply:
            fetches[HF_A].tell(indexed())
            with pytest.raises(EngineFault, match="removed meanwhile"):
                await supply.indexed(A)
            await fetches[HF_B].started.wait()
            assert fetches[HF_A].is_stopped

    async def test_a_child_that_is_started_again_goes_on_with_what_is_indexed(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            fetches[HF_A].tell(indexed(), progress(40), indexed(), progress(60), completed())
            fetches[HF_A].end()
            await fetches[HF_B].started.wait()
            assert supply.failure(A) is None
            assert len(store.leases) == 1

    async def test_one_that_finds_another_revision_then_fails_because_an_engine_reads_the_first(
        self, fetches: FakeFetches
    ) -> None:
        async with supplying(fetches, FakeStore()) as supply:
            fetches[HF_A].tell(indexed("a-0123456789ab"), indexed("a-ba9876543210"))
            await fetches[HF_B].started.wait()
            assert "has changed" in str(supply.failure(A))
            assert fetches[HF_A].is_stopped

    async def test_a_defect_fails_one_model_and_shows_nothing_of_itself(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore()) as supply:
            fetches[HF_A].tell(ZeroDivisionError("secret"))
            with pytest.raises(EngineFault, match="internal error"):
                await supply.indexed(A)
            await fetches[HF_B].started.wait()

    async def test_a_child_that_ends_without_a_word_has_failed(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore()) as supply:
            fetches[HF_A].end()
            with pytest.raises(EngineFault):
                await supply.indexed(A)


async def test_a_child_that_cannot_be_started_fails_its_model() -> None:
    def open_fetch(request: FetchRequest) -> FakeFetch:
        return FakeFetch(request, start_error=OSError(errno.EAGAIN, "Resource temporarily unavailable"))

    supply = ModelSupply([order(A, HF_A)], open_fetch=open_fetch, open_model=FakeStore().open)
    await supply.run()
    with pytest.raises(EngineFault, match="cannot be started: Resource temporarily unavailable"):
        await supply.indexed(A)


async def test_what_engines_do_to_the_environment_does_not_reach_later_fetches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Mapping[str, str] | None] = []

    class Recorded(FetchProcess):
        def __init__(self, request: FetchRequest, *, environment: Mapping[str, str] | None = None) -> None:
            seen.append(environment)
            raise OSError("not started")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("headrace_server.engine.model_supply.FetchProcess", Recorded)
    supply = ModelSupply([Order(ModelId("a"), FetchRequest("hf://a/b", tmp_path))])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with contextlib.suppress(OSError):
        await supply.run()
    assert len(seen) == 1
    assert seen[0] is not None
    assert "HF_HUB_OFFLINE" not in seen[0]
