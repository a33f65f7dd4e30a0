"""What becomes of fetches that fail and of those who wait for them, and of all of them at the server's end."""

import asyncio
import errno
from collections.abc import Mapping
from pathlib import Path

import pytest

from headrace_models.errors import ModelNotFound, StoreUnusable
from headrace_models.fetch.client import FetchProcess
from headrace_models.fetch.events import Failed
from headrace_models.fetch.request import FetchRequest
from headrace_server.engine.delivery import Order
from headrace_server.engine.model_supply import ModelSupply
from headrace_server.errors import EngineFault
from tests.fakes.fetching import FakeFetches, FakeStore, completed, indexed, progress
from tests.fakes.supplying import HF_A, HF_B, HF_C, KEY_A, KEY_B, A, B, C, Watcher, asking, bring, supplying

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def fetches() -> FakeFetches:
    return FakeFetches(HF_A, HF_B, HF_C)


class TestFailures:
    """Fetches that do not bring anything, or not all."""

    async def test_all_who_wait_get_the_one_line_and_the_next_fetch_starts(self, fetches: FakeFetches) -> None:
        async with supplying(fetches) as supply, asking(supply.open(A), supply.open(A), supply.open(B)) as asked:
            fetches[HF_A].tell(Failed("SourceDenied", "401 from example: set HF_TOKEN"))
            bring(fetches[HF_B], KEY_B)
            await asked[2]
            for opening in asked[:2]:
                with pytest.raises(EngineFault, match="set HF_TOKEN"):
                    await opening
            assert supply.failure(A) == "401 from example: set HF_TOKEN"
            assert supply.failure(B) is None

    async def test_the_next_one_to_open_it_gets_a_fresh_attempt_that_has_not_failed(self, fetches: FakeFetches) -> None:
        store, watcher = FakeStore(parts={KEY_A}), Watcher()
        async with supplying(fetches, store, watcher) as supply:
            fetches[HF_A].tell(indexed(KEY_A))
            opened = await supply.open(A)
            fetches[HF_A].tell(progress(40), Failed("SourceUnavailable", "gone for 300 s"))
            await opened.failed()
            opened.close()
            second = fetches.prepare(HF_A)
            async with asking(supply.open(A)) as (opening,):
                await second.opened.wait()
                weights = supply.weights(A)
                assert weights is not None
                assert (supply.failure(A), weights.problem, weights.present_bytes) == (None, "", 50)
                second.tell(indexed(KEY_A))
                await opening
                second.tell(progress(60))
                await watcher.until(lambda: (weights := supply.weights(A)) and weights.present_bytes == 60)
            assert store.num_held == 1

    async def test_whoever_waits_behind_others_has_no_failure_yet(self, fetches: FakeFetches) -> None:
        async with supplying(fetches) as supply:
            fetches[HF_A].end()
            with pytest.raises(EngineFault):
                await supply.open(A)
            async with asking(supply.open(B), supply.open(A)):
                await fetches[HF_B].opened.wait()
                assert supply.failure(A) is None

    async def test_a_child_that_ends_without_a_word_has_failed(self, fetches: FakeFetches) -> None:
        async with supplying(fetches) as supply:
            fetches[HF_A].end()
            with pytest.raises(EngineFault, match="without a reason"):
                await supply.open(A)

    async def test_a_child_that_cannot_be_started_fails_its_model(self, fetches: FakeFetches) -> None:
        error = OSError(errno.EAGAIN, "Resource temporarily unavailable")
        async with supplying(fetches) as supply:
            fetches.prepare(HF_A).start_error = error
            with pytest.raises(EngineFault, match="cannot be started: Resource temporarily unavailable"):
                await supply.open(A)
            bring(fetches.prepare(HF_A), KEY_A)
            await supply.open(A)

    async def test_a_child_that_is_started_again_goes_on_with_what_is_indexed(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            fetches[HF_A].tell(indexed(KEY_A), progress(40), indexed(KEY_A), progress(60), completed(KEY_A))
            await supply.open(A)
            assert supply.failure(A) is None
            assert len(store.leases) == 1

    async def test_one_that_finds_another_revision_then_fails_and_is_stopped(self, fetches: FakeFetches) -> None:
        async with supplying(fetches, FakeStore(parts={KEY_A})) as supply:
            fetches[HF_A].tell(indexed(KEY_A))
            opened = await supply.open(A)
            fetches[HF_A].tell(indexed("a-ba9876543210"))
            assert "has changed" in await opened.failed()
            assert fetches[HF_A].is_stopped

    async def test_who_has_a_whole_model_does_not_mind(self, fetches: FakeFetches) -> None:
        watcher = Watcher()
        async with supplying(fetches, FakeStore(), watcher) as supply:
            fetches[HF_A].tell(indexed(KEY_A))
            opened = await supply.open(A)
            waiting = asyncio.create_task(opened.failed())
            fetches[HF_A].tell(indexed("a-ba9876543210"))
            await watcher.until(lambda: supply.failure(A))
            await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    @pytest.mark.parametrize("error", [ModelNotFound("removed meanwhile"), StoreUnusable("no locks here")])
    async def test_a_model_that_cannot_be_opened_fails_and_its_fetch_is_stopped(
        self, fetches: FakeFetches, error: Exception
    ) -> None:
        async with supplying(fetches, FakeStore(error=error)) as supply:
            fetches[HF_A].tell(indexed(KEY_A))
            with pytest.raises(EngineFault, match=str(error)):
                await supply.open(A)
            assert supply.failure(A) == str(error)
            bring(fetches[HF_B], KEY_B)
            supply.order(B)
            await fetches[HF_B].opened.wait()
            assert fetches[HF_A].is_stopped

    async def test_one_that_fails_while_its_lease_is_taken_is_not_opened(self, fetches: FakeFetches) -> None:
        store, watcher = FakeStore(parts={KEY_A}), Watcher()
        fetch = fetches[HF_A]

        def on_open(_key: str) -> None:
            fetch.tell(Failed("NoSpace", "the disk is full"))
            fetch.wait_until_read()

        store.on_open = on_open
        async with supplying(fetches, store, watcher) as supply:
            fetch.tell(indexed(KEY_A))
            with pytest.raises(EngineFault, match="the disk is full"):
                await supply.open(A)
            assert store.num_held == 0

    async def test_a_defect_fails_one_model_and_shows_nothing_of_itself(self, fetches: FakeFetches) -> None:
        async with supplying(fetches) as supply:
            fetches[HF_A].tell(ZeroDivisionError("secret"))
            with pytest.raises(EngineFault, match="internal error"):
                await supply.open(A)
            bring(fetches[HF_B], KEY_B)
            await supply.open(B)


class TestEnd:
    """The end of the server."""

    async def test_cancelling_ends_the_fetch_under_way_and_starts_no_other(self, fetches: FakeFetches) -> None:
        async with supplying(fetches) as supply:
            supply.order(A)
            supply.order(B)
            await fetches[HF_A].opened.wait()
        assert fetches[HF_A].is_stopped
        assert fetches.references == [HF_A]

    async def test_whoever_waits_then_or_comes_later_is_told(self, fetches: FakeFetches) -> None:
        async with supplying(fetches) as supply:
            one, other = asyncio.create_task(supply.open(A)), asyncio.create_task(supply.open(B))
            await fetches[HF_A].opened.wait()
        for opening in (one, other):
            with pytest.raises(EngineFault, match="stopping"):
                await opening
        with pytest.raises(EngineFault, match="stopping"):
            await supply.open(C)

    async def test_whoever_is_cancelled_at_that_moment_is_cancelled(self, fetches: FakeFetches) -> None:
        async with supplying(fetches) as supply, asking(supply.open(A)) as (opening,):
            await fetches[HF_A].opened.wait()
            opening.cancel()
            supply.close()
            await asyncio.gather(opening, return_exceptions=True)
            assert opening.cancelled()

    async def test_a_lease_that_comes_after_the_end_goes_back(self, fetches: FakeFetches) -> None:
        store = FakeStore()
        async with supplying(fetches, store) as supply:
            bring(fetches[HF_A], KEY_A)
            (await supply.open(A)).close()
            loop = asyncio.get_running_loop()

            def on_open(_key: str) -> None:
                loop.call_soon_threadsafe(supply.close)

            store.on_open = on_open
            with pytest.raises(EngineFault, match="stopping"):
                await supply.open(A)
            assert len(store.leases) == 2

    async def test_what_engines_do_to_the_environment_does_not_reach_later_fetches(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        seen: list[Mapping[str, str] | None] = []

        class Recorded(FetchProcess):
            def __init__(self, request: FetchRequest, *, environment: Mapping[str, str] | None = None) -> None:
                seen.append(environment)
                raise OSError("not started")

        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("headrace_server.engine.model_supply.FetchProcess", Recorded)
        supply = ModelSupply([Order(A, FetchRequest("hf://a/b", tmp_path))])
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        running = asyncio.create_task(supply.run())
        with pytest.raises(EngineFault):
            await supply.open(A)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        supply.close()
        assert len(seen) == 1
        assert seen[0] is not None
        assert "HF_HUB_OFFLINE" not in seen[0]
