"""Which fetch goes first, and which one makes way."""

import asyncio
import threading

import pytest

from headrace_server.engine.model_supply import ModelSupply
from tests.fakes.fetching import FakeFetch, FakeFetches, FakeStore, FakeThreads, completed, indexed, order, progress
from tests.fakes.supplying import HF_A, HF_B, HF_C, KEY_A, KEY_B, KEY_C, A, B, C, Watcher, asking, bring, supplying

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def fetches() -> FakeFetches:
    return FakeFetches(HF_A, HF_B, HF_C)


class TestTurns:
    """Who goes first."""

    async def test_what_is_wanted_goes_before_what_is_ordered_and_that_comes_back_first(
        self, fetches: FakeFetches
    ) -> None:
        store = FakeStore(parts={KEY_A})
        async with supplying(fetches, store) as supply:
            supply.order(A)
            supply.order(C)
            first = fetches[HF_A]
            await first.opened.wait()
            first.tell(indexed(KEY_A), progress(40))
            again = fetches.prepare(HF_A)
            bring(fetches[HF_B], KEY_B)
            await supply.open(B)
            assert (first.is_stopped, supply.failure(A)) == (True, None)
            await again.opened.wait()
            bring(again, KEY_A)
            await fetches[HF_C].opened.wait()
            assert fetches.references == [HF_A, HF_B, HF_A, HF_C]

    async def test_what_somebody_waits_for_is_never_stopped_for_another(self, fetches: FakeFetches) -> None:
        async with supplying(fetches) as supply, asking(supply.open(A), supply.open(B)) as (one, other):
            await fetches[HF_A].opened.wait()
            await asyncio.sleep(0)
            assert not fetches[HF_A].is_stopped
            bring(fetches[HF_A], KEY_A)
            bring(fetches[HF_B], KEY_B)
            await asyncio.gather(one, other)
            assert fetches.references == [HF_A, HF_B]

    async def test_neither_is_what_an_engine_loads(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore(parts={KEY_A})) as supply:
            fetches[HF_A].tell(indexed(KEY_A))
            await supply.open(A)
            async with asking(supply.open(B)) as (opening,):
                assert not fetches[HF_A].is_stopped
                fetches[HF_A].tell(completed(KEY_A))
                fetches[HF_A].end()
                bring(fetches[HF_B], KEY_B)
                await opening

    async def test_what_no_engine_loads_any_more_makes_way(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore(parts={KEY_A})) as supply:
            fetches[HF_A].tell(indexed(KEY_A))
            opened = await supply.open(A)
            async with asking(supply.open(B)) as (opening,):
                bring(fetches[HF_B], KEY_B)
                assert not fetches[HF_A].is_stopped
                opened.close()
                assert fetches[HF_A].is_stopped
                await opening

    async def test_so_does_what_nobody_waits_for_any_more(self, fetches: FakeFetches) -> None:
        async with supplying(fetches) as supply, asking(supply.open(A), supply.open(B)) as (one, other):
            first = fetches[HF_A]
            await first.opened.wait()
            one.cancel()
            bring(fetches[HF_B], KEY_B)
            await other
            assert first.is_stopped

    async def test_if_nobody_waits_for_another_it_goes_on_without_a_lease(self, fetches: FakeFetches) -> None:
        store, watcher = FakeStore(), Watcher()
        async with supplying(fetches, store, watcher) as supply:
            async with asking(supply.open(A)):
                await fetches[HF_A].opened.wait()
            assert not fetches[HF_A].is_stopped
            bring(fetches[HF_A], KEY_A)
            await watcher.until(lambda: (weights := supply.weights(A)) and weights.is_complete)
            assert not store.leases

    async def test_what_nobody_wants_any_more_is_not_begun(self, fetches: FakeFetches) -> None:
        async with supplying(fetches) as supply, asking(supply.open(A), supply.open(B), supply.open(C)) as asked:
            await fetches[HF_A].opened.wait()
            asked[1].cancel()
            await asyncio.sleep(0)
            bring(fetches[HF_A], KEY_A)
            bring(fetches[HF_C], KEY_C)
            await asked[2]
            assert fetches.references == [HF_A, HF_C]

    async def test_a_model_that_is_making_way_can_be_opened_and_comes_after_the_other(
        self, fetches: FakeFetches
    ) -> None:
        async with supplying(fetches, FakeStore(parts={KEY_A})) as supply:
            supply.order(A)
            first = fetches[HF_A]
            await first.opened.wait()
            fetches.prepare(HF_A).tell(indexed(KEY_A))
            async with asking(supply.open(B), supply.open(A)) as (other, one):
                bring(fetches[HF_B], KEY_B)
                await asyncio.gather(one, other)
            assert fetches.references == [HF_A, HF_B, HF_A]

    async def test_what_it_still_says_while_it_makes_way_is_not_for_those_who_wait_for_the_next(
        self, fetches: FakeFetches
    ) -> None:
        class Late(FakeFetch):
            def stop(self) -> None:
                self.tell(indexed(KEY_A))
                self.end()

        async with supplying(fetches, FakeStore(parts={KEY_A})) as supply:
            late = fetches.prepare(HF_A, Late)
            supply.order(A)
            await late.opened.wait()
            fetches.prepare(HF_A).tell(indexed(KEY_A))
            async with asking(supply.open(B), supply.open(A)) as (other, one):
                bring(fetches[HF_B], KEY_B)
                await other
                await one
            assert fetches.references == [HF_A, HF_B, HF_A]

    async def test_what_is_only_looked_for_makes_way_too(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            bring(fetches[HF_A], KEY_A)
            (await supply.open(A)).close()
            store.parts.add(KEY_A)
            looking, may_go_on = asyncio.Event(), threading.Event()
            loop = asyncio.get_running_loop()

            def on_open(key: str) -> None:
                if key == KEY_A:
                    loop.call_soon_threadsafe(looking.set)
                    may_go_on.wait()

            store.on_open = on_open
            again = fetches.prepare(HF_A)
            supply.order(A)
            await looking.wait()
            async with asking(supply.open(B)) as (opening,):
                bring(fetches[HF_B], KEY_B)
                may_go_on.set()
                await opening
            await again.opened.wait()
            assert fetches.references == [HF_A, HF_B, HF_A]

    async def test_what_somebody_else_completes_while_it_is_looked_for_is_not_fetched_for_those_who_wait(
        self, fetches: FakeFetches
    ) -> None:
        store, threads = FakeStore(), FakeThreads()
        supply = ModelSupply([order(A, HF_A)], open_fetch=fetches.open, open_model=store.open, threads=threads)

        async def go_on() -> None:
            for _ in range(10):
                threads.catch_up()
                await asyncio.sleep(0)

        bring(fetches[HF_A], KEY_A)
        supply.order(A)
        running = asyncio.create_task(supply.run())
        await go_on()
        supply.order(A)
        await go_on()  # it is being looked for
        store.parts.add(KEY_A)
        async with asking(supply.open(A)) as (opening,):
            await go_on()
            threads.run_one(1)
            await go_on()  # and is not there, so it is waited for
            store.parts.clear()
            threads.run_one()
            await go_on()
            threads.run_one()
            (await opening).close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        supply.close()
        assert fetches.references == [HF_A]

    async def test_a_fetch_that_completes_while_it_makes_way_is_not_made_again(self, fetches: FakeFetches) -> None:
        class Deaf(FakeFetch):
            def stop(self) -> None:
                bring(self, KEY_A)

        store = FakeStore()
        async with supplying(fetches, store) as supply:
            deaf = fetches.prepare(HF_A, Deaf)
            supply.order(A)
            await deaf.opened.wait()
            bring(fetches[HF_B], KEY_B)
            await supply.open(B)
            await supply.open(A)
            assert fetches.references == [HF_A, HF_B]
