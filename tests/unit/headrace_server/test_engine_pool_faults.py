"""The pool when something goes wrong, or the operator says so: pauses, restarts, and models that are taken out."""

import asyncio
from dataclasses import replace

import pytest

from headrace_server.domain import ModelId, ModelState, Operation
from headrace_server.engine.pool import EnginePool, PoolLimits
from headrace_server.engine.slot import Lease
from headrace_server.errors import (
    EngineDied,
    EngineDown,
    EngineFault,
    ModelLoading,
    UnsupportedOperation,
    UsageError,
)
from headrace_server.scheduling.restarts import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, STABLE_SECONDS
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_room import EngineRoom, FakeModel
from tests.fakes.virtual_loop import now, turns, until, virtually

A, B, C = map(ModelId, "abc")
CHAT = Operation.CHAT
READY, COLD, FAILED = ModelState.READY, ModelState.COLD, ModelState.FAILED
HEARTBEAT = 60.0


def room_of(*names: str, budget: int = 100, at_startup: bool = False) -> EngineRoom:
    limits = PoolLimits(heartbeat_seconds=HEARTBEAT)
    return EngineRoom([FakeModel(name, at_startup=at_startup) for name in names], budget_bytes=budget, limits=limits)


def failing(error: Exception | None = None) -> FakeEngine:
    """An engine that does not start."""
    engine = FakeEngine()
    engine.start_error = error or EngineFault("no memory left")
    return engine


def gated() -> FakeEngine:
    """An engine whose start waits."""
    engine = FakeEngine()
    engine.start_gate = asyncio.Event()
    return engine


def go_on(engine: FakeEngine) -> None:
    """Let it start."""
    assert engine.start_gate is not None
    engine.start_gate.set()


def ask(pool: EnginePool, model: ModelId) -> asyncio.Task[Lease]:
    return asyncio.create_task(pool.lease(model, CHAT))


async def use(pool: EnginePool, model: ModelId) -> None:
    (await pool.lease(model, CHAT)).release()


async def refused(pool: EnginePool, model: ModelId) -> EngineDown:
    with pytest.raises(EngineDown) as caught:
        await pool.lease(model, CHAT)
    return caught.value


# ------------------------------------------------------------------------------------------------- failed loads


@pytest.mark.parametrize("where", ["prepare", "build", "start"])
@pytest.mark.parametrize("error", [EngineFault("not there"), UsageError("no url"), ZeroDivisionError("secret")])
@virtually
async def test_a_model_that_cannot_be_loaded_fails_alone_and_tells_everybody_at_once(
    where: str, error: Exception
) -> None:
    room = room_of("a", "b")
    gate = room.models[A].prepare_gate = asyncio.Event()
    async with room.open() as pool:
        await use(pool, B)
        match where:
            case "prepare":
                room.models[A].prepare_error = error
            case "build":
                room.build_error = error
            case _:
                room.next(A, failing(error))
        waiting = [ask(pool, A) for _ in range(3)]
        await turns()
        gate.set()
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, EngineDown)
            assert "'a'" in result.message
            assert result.retry_after_seconds == FIRST_PAUSE_SECONDS
        assert room.states() == {A: FAILED, B: READY}
        shown = "internal error; the log says more" if isinstance(error, ZeroDivisionError) else str(error)
        assert pool.status(A).detail == shown
        await asyncio.sleep(4)
        since, num_prepared = now(), room.models[A].num_prepared
        assert (await refused(pool, A)).retry_after_seconds == FIRST_PAUSE_SECONDS - 4
        assert (now(), room.models[A].num_prepared) == (since, num_prepared)
        assert pool.status(A).retry_in_seconds == FIRST_PAUSE_SECONDS - 4


@virtually
async def test_after_the_pause_a_startup_model_is_tried_by_itself_and_another_one_when_it_is_asked_for() -> None:
    room = EngineRoom([FakeModel("a", at_startup=True), FakeModel("b")])
    for model in (A, B):
        room.next(model, failing())
    async with room.open() as pool:
        await pool.until_settled()
        await refused(pool, B)
        await asyncio.sleep(FIRST_PAUSE_SECONDS + 1)
        assert room.states() == {A: READY, B: FAILED}
        await asyncio.sleep(1000)
        assert len(room.engines(B)) == 1
        await use(pool, B)
        assert room.states() == {A: READY, B: READY}
        assert pool.status(B).retry_in_seconds is None


@virtually
async def test_pauses_double_up_to_a_bound_and_nothing_happens_in_between() -> None:
    room = room_of("a", at_startup=True)
    room.next(A, *(failing() for _ in range(10)))
    async with room.open() as pool:
        await pool.until_settled()
        starts = [now()]
        while len(room.engines(A)) <= 10:
            num_engines = len(room.engines(A))
            await asyncio.sleep(1)
            if len(room.engines(A)) > num_engines:
                starts.append(now())
        pauses = [later - sooner for sooner, later in zip(starts, starts[1:], strict=False)]
        doubled = [min(FIRST_PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS) for number in range(10)]
        assert pauses == pytest.approx(doubled, abs=1.5)
        assert pool.status(A).state is READY


@virtually
async def test_an_operator_may_cut_a_pause_short_and_hears_how_it_went() -> None:
    room = room_of("a")
    room.next(A, failing(), failing(), FakeEngine())
    async with room.open() as pool:
        await refused(pool, A)
        since = now()
        with pytest.raises(EngineDown):
            await pool.load(A)
        assert pool.status(A).retry_in_seconds == 2 * FIRST_PAUSE_SECONDS
        loading = asyncio.create_task(pool.load(A))
        await asyncio.sleep(0)
        await use(pool, A)  # who asks now is not sent away
        await loading
        await pool.load(A)
        assert (now(), pool.status(A).state, len(room.engines(A))) == (since, READY, 3)


@virtually
async def test_an_operator_may_call_off_the_attempts_that_a_startup_model_has_left() -> None:
    room = room_of("a", at_startup=True)
    room.next(A, failing())
    async with room.open() as pool:
        await pool.until_settled()
        await pool.unload(A)
        await asyncio.sleep(1000)
        assert len(room.engines(A)) == 1
        await use(pool, A)


@virtually
async def test_a_load_goes_on_when_the_operator_leaves() -> None:
    room, slow = room_of("a"), gated()
    room.next(A, slow)
    async with room.open() as pool:
        loading = asyncio.create_task(pool.load(A))
        await slow.starting.wait()
        loading.cancel()
        await turns()
        go_on(slow)
        await turns()
        assert (pool.status(A).state, pool.status(A).num_leases) == (READY, 0)


@virtually
async def test_a_start_whose_weights_will_not_come_ends_at_once_and_others_get_their_turn() -> None:
    room, slow = room_of("a", "b"), gated()
    room.next(A, slow)
    async with room.open() as pool:
        first, second = ask(pool, A), ask(pool, B)
        await slow.starting.wait()
        await asyncio.sleep(3)
        failure = room.models[A].weights_failure
        assert failure is not None
        failure.set_result("the source went away")
        (await second).release()
        assert now() == 1003.0
        with pytest.raises(EngineDown):
            await first
        assert (pool.status(A).detail, slow.num_closes) == ("the source went away", 1)


# ------------------------------------------------------------------------------------------------------- deaths


@virtually
async def test_a_dead_engine_is_replaced_where_it_was_and_those_who_come_meanwhile_are_served_by_the_next_one() -> None:
    room, slow = room_of("a", "b", budget=1), gated()
    async with room.open() as pool:
        old = await pool.lease(A, CHAT)
        dead = room.engine(A)
        room.next(A, slow)
        dead.die("the process ended")
        await slow.starting.wait()
        waiting, other = ask(pool, A), ask(pool, B)
        await asyncio.sleep(100)
        status = pool.status(A)
        assert (status.state, status.detail) == (ModelState.LOADING, "restarting: the process ended")
        assert (status.is_restarting, status.memory_bytes, status.num_leases, status.num_held) == (True, 1, 1, 1)
        assert (dead.num_closes, room.models[A].num_prepared) == (1, 1)
        go_on(slow)
        lease = await waiting
        assert lease.engine is slow
        assert not pool.status(A).is_restarting
        old.release()
        assert pool.status(A).num_leases == 1
        lease.release()
        (await other).release()


@virtually
async def test_an_engine_restarts_at_once_twice_and_then_everybody_is_told_of_a_pause() -> None:
    room = room_of("a")
    async with room.open() as pool:
        for number in range(2):
            await use(pool, A)
            await asyncio.sleep(1)
            room.engine(A).die(f"death {number}")
            await until(lambda: len(room.engines(A)) == number + 2, every_seconds=0.1)  # noqa: B023
            assert room.pool.status(A).state is not FAILED
        await use(pool, A)
        dead = room.engine(A)
        dead.close_gate = asyncio.Event()
        dead.die("death 2")
        await asyncio.sleep(1)
        waiting = ask(pool, A)  # while what is left of the engine goes
        await turns()
        dead.close_gate.set()
        with pytest.raises(EngineDown) as caught:
            await waiting
        assert caught.value.retry_after_seconds == FIRST_PAUSE_SECONDS
        assert (pool.status(A).state, pool.status(A).detail) == (FAILED, "death 2")
        assert (pool.status(A).memory_bytes, len(room.engines(A))) == (None, 3)
        await refused(pool, A)
        await asyncio.sleep(FIRST_PAUSE_SECONDS)
        await use(pool, A)
        assert pool.status(A).state is READY


@virtually
async def test_an_engine_that_has_lived_for_long_enough_may_die_at_once_again() -> None:
    room = room_of("a", at_startup=True)
    async with room.open() as pool:
        await pool.until_settled()
        for _ in range(10):
            await asyncio.sleep(STABLE_SECONDS + 1)
            room.engine(A).die()
            await asyncio.sleep(1)
            assert pool.status(A).state is READY


@virtually
async def test_a_death_that_a_request_reports_is_believed_at_once() -> None:
    room, slow = room_of("a"), gated()
    async with room.open() as pool:
        leases = [await pool.lease(A, CHAT) for _ in range(3)]
        room.next(A, slow)
        since = now()
        for lease in leases:
            lease.report_death()
            lease.release()
        waiting = [ask(pool, A) for _ in range(3)]
        await slow.starting.wait()
        assert now() == since
        go_on(slow)
        for lease in await asyncio.gather(*waiting):
            assert lease.engine is slow
            lease.release()
        assert len(room.engines(A)) == 2


@virtually
async def test_requests_that_keep_finding_their_engine_dead_end_in_a_pause_and_not_in_a_loop() -> None:
    room = room_of("a")
    async with room.open() as pool:
        for _ in range(3):
            lease = await pool.lease(A, CHAT)
            lease.report_death()
            lease.release()
        await refused(pool, A)
        assert len(room.engines(A)) == 3


@virtually
async def test_a_start_that_does_not_end_keeps_others_out_for_a_minute_and_no_longer() -> None:
    room = room_of("a", "b")
    room.next(A, gated())
    async with room.open() as pool:
        stuck = ask(pool, A)
        await asyncio.sleep(1)
        began = now()
        await use(pool, B)
        assert 50 < now() - began < 61
        assert room.states() == {A: ModelState.LOADING, B: ModelState.READY}
        stuck.cancel()


@virtually
async def test_a_model_that_failed_counts_as_restarting_until_it_serves() -> None:
    room = room_of("a", at_startup=True)
    room.next(A, failing())
    seen: list[bool] = []
    async with room.open() as pool:
        await pool.until_settled()
        while pool.status(A).state is not ModelState.READY:
            seen.append(pool.status(A).is_restarting)
            await asyncio.sleep(1)
        assert seen
        assert all(seen)
        assert not pool.status(A).is_restarting


@virtually
async def test_an_upstream_that_is_away_fails_the_model_and_is_asked_all_the_same() -> None:
    room = room_of("a", "b")
    async with room.open() as pool:
        await use(pool, A)
        await use(pool, B)
        engine = room.engine(A)
        engine.check_error = EngineDown("cannot be reached")
        await asyncio.sleep(1)
        assert room.states() == {A: FAILED, B: READY}
        assert pool.status(A).detail == "cannot be reached"
        lease = await pool.lease(A, CHAT)
        assert lease.engine is engine
        lease.release()
        engine.check_error = None
        await asyncio.sleep(1)
        assert (pool.status(A).state, pool.status(A).detail) == (READY, "")
        assert len(room.engines(A)) == 1


@virtually
async def test_an_engine_that_hangs_is_replaced_after_so_long_a_silence() -> None:
    room = room_of("a")
    async with room.open() as pool:
        lease = await pool.lease(A, CHAT)
        hung = room.engine(A)
        hung.heartbeat_gate = asyncio.Event()
        since = now()
        await until(lambda: len(room.engines(A)) == 2, every_seconds=1)
        assert HEARTBEAT <= now() - since <= 1.5 * HEARTBEAT
        assert hung.num_closes == 1
        assert any("hangs" in change.detail for change in room.changes)
        lease.release()
        await use(pool, A)


@virtually
async def test_an_engine_that_answers_or_moves_is_left_alone() -> None:
    room = room_of("a", "b")
    async with room.open() as pool:
        await use(pool, A)
        await use(pool, B)
        room.engine(B).heartbeat_gate = asyncio.Event()
        for number in range(100):
            await asyncio.sleep(HEARTBEAT * 0.9)
            room.engine(B).current = replace(room.engine(B).current, generation_tokens_total=number + 1)
        assert (len(room.engines(A)), len(room.engines(B))) == (1, 1)


class Defective(FakeEngine):
    """Whoever looks at it meets with a defect."""

    async def check(self) -> None:
        raise ZeroDivisionError("secret")


@virtually
async def test_a_defect_in_an_engine_that_serves_fails_its_model_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    room = room_of("a", "b")
    room.next(A, Defective())
    async with room.open() as pool:
        for model in (A, B):
            await use(pool, model)
        await asyncio.sleep(1)
        assert room.states() == {A: FAILED, B: READY}
        assert pool.status(A).detail == "internal error; the log says more"
        assert "secret" in caplog.text
        await asyncio.sleep(FIRST_PAUSE_SECONDS)
        await use(pool, A)
        assert room.states() == {A: READY, B: READY}


@virtually
async def test_a_start_takes_as_long_as_it_takes() -> None:
    room, slow = room_of("a"), gated()
    slow.check_error = EngineDied("not started")
    room.next(A, slow)
    async with room.open() as pool:
        waiting = asyncio.create_task(pool.lease(A, CHAT, deadline=now() + 100_000))
        await asyncio.sleep(50_000)
        assert (slow.num_heartbeats, pool.status(A).state) == (0, ModelState.LOADING)
        slow.check_error = None
        go_on(slow)
        (await waiting).release()


@virtually
async def test_a_death_among_the_last_requests_of_a_model_ends_its_stay_and_those_who_wait_bring_it_back() -> None:
    room = room_of("a")
    async with room.open() as pool:
        lease = await pool.lease(A, CHAT)
        dead = room.engine(A)
        unloading = asyncio.create_task(pool.unload(A))
        await turns()
        waiting = ask(pool, A)
        await turns()
        dead.die()
        await unloading
        assert dead.num_closes == 1
        new = await waiting
        assert new.engine is not dead
        assert pool.status(A).num_leases == 2
        lease.release()
        new.release()
        assert room.models[A].num_prepared == 2


# ---------------------------------------------------------------------------------------------------- unloading


@virtually
async def test_an_idle_model_is_unloaded_at_once_and_a_cold_one_stays_cold() -> None:
    room = room_of("a", at_startup=True)
    async with room.open() as pool:
        await pool.until_settled()
        since = now()
        await pool.unload(A)
        await pool.unload(A)
        assert (now(), pool.status(A).state, room.engine(A).num_closes) == (since, COLD, 1)
        await asyncio.sleep(1000)
        assert len(room.engines(A)) == 1
        await use(pool, A)


@virtually
async def test_a_model_in_use_is_unloaded_once_its_requests_have_ended_and_later_ones_bring_it_back() -> None:
    room = room_of("a")
    async with room.open() as pool:
        lease = await pool.lease(A, CHAT)
        unloading = [asyncio.create_task(pool.unload(A)) for _ in range(2)]
        await asyncio.sleep(100)
        assert pool.status(A).state is ModelState.DRAINING
        assert not any(task.done() for task in unloading)
        later = ask(pool, A)
        await asyncio.sleep(100)
        assert room.engine(A).num_closes == 0
        lease.release()
        await asyncio.gather(*unloading)
        (await later).release()
        assert (pool.status(A).state, len(room.engines(A))) == (READY, 2)


@virtually
async def test_whoever_waits_for_a_model_that_leaves_is_not_sent_away_by_another_order_to_unload_it() -> None:
    room = room_of("a")
    async with room.open() as pool:
        await use(pool, A)
        gate = room.engine(A).close_gate = asyncio.Event()
        first = asyncio.create_task(pool.unload(A))
        await turns()
        waiting = ask(pool, A)
        second = asyncio.create_task(pool.unload(A))
        await turns()
        assert room.engine(A).num_closes == 1
        gate.set()
        await asyncio.gather(first, second)
        (await waiting).release()


@pytest.mark.parametrize("where", ["fetching", "waiting for memory", "starting", "restarting"])
@virtually
async def test_a_model_on_its_way_is_stopped_at_once_and_those_who_wait_are_told(where: str) -> None:
    room, slow = room_of("a", "b", budget=1), gated()
    async with room.open() as pool:
        blocking: Lease | None = None
        match where:
            case "fetching":
                room.models[A].prepare_gate = asyncio.Event()
            case "waiting for memory":
                blocking = await pool.lease(B, CHAT)
            case "restarting":
                await use(pool, A)
                room.next(A, slow)
                room.engine(A).die()
                await slow.starting.wait()
            case _:
                room.next(A, slow)
        waiting = ask(pool, A)
        await asyncio.sleep(1)
        since = now()
        unloading = asyncio.create_task(pool.unload(A))
        with pytest.raises(ModelLoading, match="unloaded"):
            await waiting
        await unloading
        assert (now(), pool.status(A).state, pool.status(A).memory_bytes) == (since, COLD, None)
        if blocking is not None:
            blocking.release()
        await asyncio.sleep(1000)
        assert pool.status(A).state is COLD
        room.models[A].prepare_gate = None
        await use(pool, A)
        assert pool.status(A).state is READY


@pytest.mark.parametrize("num_turns", range(25))
@virtually
async def test_a_model_that_is_unloaded_at_any_moment_leaves_no_memory_taken(num_turns: int) -> None:
    room = room_of("a", "b", budget=1)
    async with room.open() as pool:
        waiting = ask(pool, A)
        await turns(num_turns)
        unloading = asyncio.create_task(pool.unload(A))
        other = ask(pool, B)
        results = await asyncio.gather(waiting, return_exceptions=True)
        for result in results:
            if isinstance(result, Lease):
                result.release()
        (await other).release()
        await unloading
        assert pool.status(A).state is COLD
        await use(pool, A)
        await use(pool, B)


@virtually
async def test_an_engine_that_is_being_stopped_keeps_its_memory_whatever_the_operator_says() -> None:
    room = room_of("a", "b", budget=1)
    async with room.open() as pool:
        await use(pool, A)
        engine = room.engine(A)
        gate = engine.close_gate = asyncio.Event()
        room.next(A, gated())
        engine.die()
        await asyncio.sleep(1)
        assert engine.num_closes == 1
        unloading, other = asyncio.create_task(pool.unload(A)), ask(pool, B)
        await asyncio.sleep(10)
        assert not unloading.done()
        assert room.engines(B) == []
        gate.set()
        await unloading
        (await other).release()


@virtually
async def test_a_model_whose_operations_are_known_is_not_loaded_for_others_even_after_a_failure() -> None:
    room = room_of("a")
    room.next(A, FakeEngine(operations=[CHAT]), failing())
    async with room.open() as pool:
        await use(pool, A)
        await pool.unload(A)
        await refused(pool, A)
        with pytest.raises(UnsupportedOperation):
            await pool.lease(A, Operation.SCORE)


@virtually
async def test_a_pool_that_ends_ends_what_is_on_its_way_out_too() -> None:
    room = room_of("a", "b", "c")
    room.next(B, gated())
    async with room.open() as pool:
        leases = [await pool.lease(A, CHAT), await pool.lease(C, CHAT)]
        unloading = asyncio.create_task(pool.unload(A))
        starting = ask(pool, B)
        gate = asyncio.Event()
        room.engine(C).close_gate = gate
        room.engine(C).die()
        await asyncio.sleep(1)
        assert room.engine(C).num_closes == 1
        asyncio.get_running_loop().call_later(7, gate.set)
    assert now() == 1008.0  # what is being stopped is waited for
    await asyncio.gather(unloading, starting, return_exceptions=True)
    for lease in leases:
        lease.release()
    assert set(room.states().values()) == {COLD}
