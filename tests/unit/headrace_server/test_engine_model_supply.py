"""What engines want and what is ordered: what is fetched for it, and who holds which lease."""

import asyncio
from pathlib import Path

import pytest

from headrace_models.fetch.events import Failed
from headrace_models.fetch.request import FetchRequest
from headrace_server.engine.model_supply import ModelSupply
from headrace_server.errors import EngineFault
from tests.fakes.fetching import FACTS, FakeFetch, FakeFetches, FakeStore, completed, indexed, order, progress
from tests.fakes.supplying import HF_A, HF_B, HF_C, KEY_A, KEY_B, A, B, Watcher, asking, bring, supplying

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def fetches() -> FakeFetches:
    return FakeFetches(HF_A, HF_B, HF_C)


class TestOpening:
    """Models that engines want."""

    async def test_nothing_is_fetched_before_anybody_asks(self, fetches: FakeFetches) -> None:
        async with supplying(fetches):
            await asyncio.sleep(0)
            assert not fetches.opened

    async def test_an_engine_gets_the_skeleton_the_key_and_the_facts_as_soon_as_the_model_is_indexed(
        self, fetches: FakeFetches
    ) -> None:
        async with supplying(fetches, FakeStore(parts={KEY_A})) as supply:
            fetches[HF_A].tell(indexed(KEY_A))
            supplied = (await supply.open(A)).supplied
            assert (supplied.key, supplied.facts, supplied.cache_dir) == (KEY_A, FACTS, Path("/cache"))
            assert supplied.skeleton == Path(f"/cache/models/{KEY_A}/skeleton")
            weights = supply.weights(A)
            assert weights is not None
            assert not weights.is_complete

    async def test_all_who_open_a_model_share_one_fetch_and_have_a_lease_each(self, fetches: FakeFetches) -> None:
        store = FakeStore(parts={KEY_A})
        async with supplying(fetches, store) as supply:
            async with asking(supply.open(A), supply.open(A)) as asked:
                fetches[HF_A].tell(indexed(KEY_A))
                supplies = [*await asyncio.gather(*asked), await supply.open(A)]
            assert fetches.references == [HF_A]
            for number in (2, 1, 0):
                supplies.pop().close()
                assert store.num_held == number

    async def test_closing_twice_gives_back_one_lease(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            bring(fetches[HF_A], KEY_A)
            opened = await supply.open(A)
            opened.close()
            opened.close()
            assert [lease.num_closed for lease in store.leases] == [1]

    async def test_what_is_left_open_is_closed_with_the_supply(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            bring(fetches[HF_A], KEY_A)
            opened = await supply.open(A)
            assert store.num_held == 1
        opened.close()
        assert [lease.num_closed for lease in store.leases] == [1]

    async def test_a_supply_tells_when_the_fetch_behind_it_fails(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore(parts={KEY_A})) as supply:
            fetches[HF_A].tell(indexed(KEY_A))
            opened = await supply.open(A)
            fetches[HF_A].tell(progress(50), Failed("NoSpace", "the disk is full"))
            assert await opened.failed() == "the disk is full"
            assert supply.failure(A) == "the disk is full"

    async def test_and_never_tells_anything_else(self, fetches: FakeFetches) -> None:
        watcher = Watcher()
        async with supplying(fetches, FakeStore(parts={KEY_A}), watcher) as supply:
            fetches[HF_A].tell(indexed(KEY_A))
            opened = await supply.open(A)
            waiting = asyncio.create_task(opened.failed())
            fetches[HF_A].tell(completed(KEY_A))
            await watcher.until(lambda: (weights := supply.weights(A)) and weights.is_complete)
            opened.close()
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    async def test_a_model_may_be_opened_before_the_supply_runs(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        supply = ModelSupply([order(A, HF_A)], open_fetch=fetches.open, open_model=store.open)
        bring(fetches[HF_A], KEY_A)
        async with asking(supply.open(A)) as (opening,):
            running = asyncio.create_task(supply.run())
            (await opening).close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        supply.close()


class TestStored:
    """Models that were brought before."""

    async def test_one_that_is_whole_opens_without_a_fetch(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            bring(fetches[HF_A], KEY_A)
            (await supply.open(A)).close()
            opened = await supply.open(A)
            assert opened.supplied.key == KEY_A
            assert store.num_held == 1
            assert fetches.references == [HF_A]

    async def test_one_of_which_the_cache_has_dropped_a_part_is_fetched_again(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            bring(fetches[HF_A], KEY_A)
            (await supply.open(A)).close()
            store.parts.add(KEY_A)
            fetches.prepare(HF_A).tell(indexed(KEY_A))
            await supply.open(A)
            weights = supply.weights(A)
            assert weights is not None
            assert (weights.present_bytes, weights.is_complete, weights.fetched_bytes) == (50, False, 100)
            assert fetches.references == [HF_A, HF_A]
            assert store.num_held == 1

    async def test_one_that_the_cache_has_dropped_is_fetched_again_and_nothing_is_known_of_it(
        self, fetches: FakeFetches
    ) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            bring(fetches[HF_A], KEY_A)
            (await supply.open(A)).close()
            store.gone.add(KEY_A)
            second = fetches.prepare(HF_A)
            async with asking(supply.open(A)) as (opening,):
                await second.opened.wait()
                assert supply.weights(A) is None
                store.gone.clear()
                bring(second, KEY_A)
                assert (await opening).supplied.key == KEY_A

    async def test_one_that_moved_on_at_its_source_meanwhile_is_the_new_one(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            bring(fetches[HF_A], KEY_A)
            (await supply.open(A)).close()
            store.parts.add(KEY_A)
            bring(fetches.prepare(HF_A), "a-ba9876543210")
            assert (await supply.open(A)).supplied.key == "a-ba9876543210"

    async def test_one_that_somebody_else_has_completed_after_a_failure_has_no_failure(
        self, fetches: FakeFetches
    ) -> None:
        store = FakeStore(parts={KEY_A})
        async with supplying(fetches, store) as supply:
            fetches[HF_A].tell(indexed(KEY_A), Failed("SourceUnavailable", "gone for 300 s"))
            with pytest.raises(EngineFault):
                await supply.open(A)
            store.parts.clear()
            await supply.open(A)
            weights = supply.weights(A)
            assert weights is not None
            assert (weights.is_complete, weights.problem, supply.failure(A)) == (True, "", None)
            assert fetches.references == [HF_A]

    async def test_one_that_is_dropped_before_an_engine_has_it_is_fetched_once_more(self, fetches: FakeFetches) -> None:
        store = FakeStore(gone={KEY_A})
        async with supplying(fetches, store) as supply:
            first = fetches[HF_A]
            async with asking(supply.open(A)) as (opening,):
                await first.opened.wait()
                second = fetches.prepare(HF_A)
                store.on_open = lambda _key: first.wait_until_read()
                first.tell(indexed(KEY_A), completed(KEY_A))
                first.end()
                await second.opened.wait()
                store.gone.clear()
                bring(second, KEY_A)
                await opening
                assert store.num_held == 1

    async def test_but_not_for_ever(self, fetches: FakeFetches) -> None:
        store = FakeStore(parts={KEY_A})

        class Hasty(FakeFetches):
            def open(self, request: FetchRequest) -> FakeFetch:
                fetch = super().open(request)
                bring(fetch, KEY_A)
                return fetch

        # Whatever is opened has ended by the time that its lease is taken.
        hasty = Hasty(HF_A, HF_B, HF_C)
        store.on_open = lambda _key: hasty.opened[-1].wait_until_read()
        async with supplying(hasty, store) as supply:
            with pytest.raises(EngineFault, match="drops a as soon as it is there"):
                await supply.open(A)
            assert hasty.references == [HF_A] * 3


class TestOrdering:
    """Models that are brought in advance."""

    async def test_what_is_ordered_is_fetched_one_after_the_other_and_not_leased(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            supply.order(B)
            supply.order(A)
            await fetches[HF_B].opened.wait()
            fetches[HF_B].tell(indexed(KEY_B), progress(50))
            assert fetches.references == [HF_B]
            fetches[HF_B].tell(completed(KEY_B))
            fetches[HF_B].end()
            await fetches[HF_A].opened.wait()
            weights = supply.weights(B)
            assert weights is not None
            assert weights.is_complete
            assert store.num_held == 0

    async def test_what_is_on_its_way_is_not_ordered_again(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore(parts={KEY_A})) as supply:
            supply.order(A)
            await fetches[HF_A].opened.wait()
            supply.order(A)
            supply.order(B)
            bring(fetches[HF_A], KEY_A)
            await fetches[HF_B].opened.wait()
            assert fetches.references == [HF_A, HF_B]

    async def test_what_is_here_is_not_fetched_again(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            bring(fetches[HF_A], KEY_A)
            opened = await supply.open(A)
            supply.order(A)  # in use
            opened.close()
            supply.order(A)  # whole, as the store says
            supply.order(B)
            await fetches[HF_B].opened.wait()
            assert fetches.references == [HF_A, HF_B]
            assert store.num_held == 0

    async def test_what_was_dropped_is(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            bring(fetches[HF_A], KEY_A)
            (await supply.open(A)).close()
            store.parts.add(KEY_A)
            second = fetches.prepare(HF_A)
            supply.order(A)
            await second.opened.wait()
            assert store.num_held == 0

    async def test_what_is_ordered_after_a_failure_gets_a_fresh_attempt(self, fetches: FakeFetches) -> None:
        watcher = Watcher()
        async with supplying(fetches, watcher=watcher) as supply:
            supply.order(A)
            fetches[HF_A].end()
            await watcher.until(lambda: supply.failure(A))
            second = fetches.prepare(HF_A)
            supply.order(A)
            assert supply.failure(A) is None
            await second.opened.wait()

    async def test_a_model_that_is_on_its_way_in_advance_can_be_opened(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore(parts={KEY_A})) as supply:
            supply.order(A)
            await fetches[HF_A].opened.wait()
            fetches[HF_A].tell(indexed(KEY_A))
            await supply.open(A)
            assert fetches.references == [HF_A]
