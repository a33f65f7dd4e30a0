"""The watch: a dead engine says so, a hung one is silent, and nothing else is taken for either."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from headrace_server.engine.watch import TICK_SECONDS, Watch
from headrace_server.errors import EngineDied, EngineDown
from tests.fakes.engine import FakeEngine
from tests.fakes.virtual_loop import VirtualLoop, now, until, virtually

LIMIT = 60.0
REST = LIMIT / 4  # between heartbeats
HOUR = 3600.0


@asynccontextmanager
async def watching(
    engine: FakeEngine, reach: list[str | None] | None = None, *, limit: float = LIMIT
) -> AsyncIterator[asyncio.Task[str]]:
    """What the watch will say; it is ended with the block."""
    told = reach if reach is not None else []
    watch = Watch(engine, heartbeat_seconds=limit, on_reach=told.append, clock=asyncio.get_running_loop().time)
    task = asyncio.create_task(watch.until_down())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def hung() -> FakeEngine:
    """Never answers a heartbeat."""
    engine = FakeEngine()
    engine.heartbeat_gate = asyncio.Event()
    return engine


@virtually
async def test_a_dead_engine_is_noticed_at_the_next_look_and_says_why() -> None:
    engine = FakeEngine()
    async with watching(engine) as verdict:
        await asyncio.sleep(HOUR)
        assert not verdict.done()
        engine.check_error = EngineDied("the process ended")
        since = now()
        assert await verdict == "the process ended"
        assert now() - since <= TICK_SECONDS + 1e-6


@virtually
async def test_an_engine_that_cannot_be_reached_is_told_of_and_watched_on() -> None:
    engine, told = FakeEngine(), list[str | None]()
    async with watching(engine, told) as verdict:
        await asyncio.sleep(1.5 * TICK_SECONDS)
        engine.check_error = EngineDown("no route")
        await asyncio.sleep(2 * TICK_SECONDS)
        engine.check_error = None
        await asyncio.sleep(TICK_SECONDS)
        assert not verdict.done()
    assert told == [None, "no route", "no route", None]


@virtually
async def test_an_idle_engine_that_answers_is_asked_now_and_then_and_left_alone() -> None:
    engine = FakeEngine()
    async with watching(engine) as verdict:
        await asyncio.sleep(HOUR)
        assert not verdict.done()
    assert HOUR / REST * 0.9 < engine.num_heartbeats <= HOUR / REST


@virtually
async def test_an_engine_that_has_been_silent_for_so_long_while_it_was_asked_hangs() -> None:
    engine, since = hung(), now()
    async with watching(engine) as verdict:
        assert await verdict == "the engine hangs: nothing moved for 60 s"
    assert REST + LIMIT <= now() - since <= REST + LIMIT + 4 * TICK_SECONDS
    assert engine.num_heartbeats == 1


@virtually
async def test_a_heartbeat_that_is_answered_late_but_in_time_is_a_sign_of_life() -> None:
    engine = FakeEngine()
    async with watching(engine) as verdict:
        for _ in range(20):
            num_heartbeats = engine.num_heartbeats
            gate = engine.heartbeat_gate = asyncio.Event()
            await until(lambda: engine.num_heartbeats > num_heartbeats, every_seconds=TICK_SECONDS)  # noqa: B023
            await asyncio.sleep(0.9 * LIMIT)  # none of them counts for the next one
            gate.set()
        assert not verdict.done()


@pytest.mark.parametrize("counter", ["prompt_tokens_total", "generation_tokens_total"])
@virtually
async def test_an_engine_whose_tokens_still_come_does_not_hang_however_long_the_heartbeat_waits(counter: str) -> None:
    engine = hung()
    async with watching(engine) as verdict:
        for number in range(60):
            await asyncio.sleep(0.9 * LIMIT)
            engine.current = replace(engine.current, **{counter: number + 1})
        assert not verdict.done()
        since = now()
        assert "hangs" in await verdict
    assert LIMIT <= now() - since <= LIMIT + 4 * TICK_SECONDS
    assert engine.num_heartbeats == 1


@virtually
async def test_time_in_which_our_own_loop_did_not_run_is_not_the_engines_silence() -> None:
    engine = hung()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    async with watching(engine) as verdict:
        await asyncio.sleep(REST + 1)
        for _ in range(3):
            loop.stall(HOUR)
            await asyncio.sleep(TICK_SECONDS)
        assert not verdict.done()
        since = now()
        assert "hangs" in await verdict
    assert LIMIT - 5 < now() - since < LIMIT


@pytest.mark.parametrize("failure", [EngineDied("gone"), EngineDown("no route"), ZeroDivisionError()])
@virtually
async def test_a_heartbeat_that_fails_says_nothing_that_the_look_at_the_engine_does_not(failure: Exception) -> None:
    class Failing(FakeEngine):
        async def heartbeat(self) -> None:
            await super().heartbeat()
            raise failure

    engine = Failing()
    async with watching(engine) as verdict:
        await asyncio.sleep(HOUR)
        assert not verdict.done()
    assert engine.num_heartbeats > 10


@virtually
async def test_a_heartbeat_that_the_engine_calls_off_is_asked_for_again() -> None:
    class CallingOff(FakeEngine):
        async def heartbeat(self) -> None:
            await super().heartbeat()
            raise asyncio.CancelledError

    engine = CallingOff()
    async with watching(engine) as verdict:
        await asyncio.sleep(HOUR)
        assert not verdict.done()
    assert engine.num_heartbeats > 10


@virtually
async def test_the_end_of_the_watch_is_the_end_of_the_heartbeat_under_way() -> None:
    engine = hung()
    async with watching(engine) as verdict:
        await asyncio.sleep(REST + 1)
        assert engine.num_heartbeats == 1
        verdict.cancel()
        with pytest.raises(asyncio.CancelledError):
            await verdict
        assert asyncio.all_tasks() == {asyncio.current_task()}


@virtually
async def test_a_death_while_a_heartbeat_is_under_way_is_noticed_all_the_same() -> None:
    engine = hung()
    async with watching(engine) as verdict:
        await asyncio.sleep(REST + 1)
        engine.check_error = EngineDied("the process ended")
        assert await verdict == "the process ended"
