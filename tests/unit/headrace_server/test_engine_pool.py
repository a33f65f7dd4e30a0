"""The pool: one load for everybody who waits, leases that are counted, and who has to go when memory is short."""

import asyncio
from dataclasses import replace
from itertools import groupby

import pytest

from headrace_models.trust import Trust
from headrace_server.domain import EngineStats, ModelId, ModelState, Operation, WeightsStatus
from headrace_server.engine.pool import EnginePool, PoolLimits
from headrace_server.engine.slot import Lease
from headrace_server.errors import (
    DeadlineExpired,
    Draining,
    EngineDown,
    EngineFault,
    ModelLoading,
    ModelNotFound,
    NoRoomForModel,
    UnsupportedOperation,
)
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_room import EngineRoom, FakeModel
from tests.fakes.server import TURN_SECONDS
from tests.fakes.virtual_loop import now, turns, until, virtually

A, B, C, D = map(ModelId, "abcd")
CHAT = Operation.CHAT
READY, COLD, FAILED = ModelState.READY, ModelState.COLD, ModelState.FAILED


def room_of(*names: str, budget: int = 100, limits: PoolLimits | None = None, at_startup: bool = False) -> EngineRoom:
    """Models that take one byte each."""
    return EngineRoom([FakeModel(name, at_startup=at_startup) for name in names], budget_bytes=budget, limits=limits)


def gated(engine: FakeEngine | None = None) -> FakeEngine:
    """An engine whose start waits."""
    engine = engine or FakeEngine()
    engine.start_gate = asyncio.Event()
    return engine


def ask(pool: EnginePool, model: ModelId, operation: Operation = CHAT) -> asyncio.Task[Lease]:
    """A request that may have to wait."""
    return asyncio.create_task(pool.lease(model, operation))


async def use(pool: EnginePool, model: ModelId, seconds: float = 0.0) -> None:
    """A whole request."""
    lease = await pool.lease(model, CHAT)
    await asyncio.sleep(seconds)
    lease.release()


# ----------------------------------------------------------------------------------------------- names and states


@virtually
async def test_a_request_takes_a_model_from_cold_over_fetching_and_loading_to_ready() -> None:
    room = room_of("a")
    room.next(A, FakeEngine(max_model_len=77, memory_bytes=9))
    async with room.open() as pool:
        assert (pool.status(A).state, pool.status(A).max_model_len) == (COLD, None)
        lease = await pool.lease(A, CHAT)
        states = [state for state, _ in groupby(change.state for change in room.changes if change.state is not COLD)]
        assert states == [ModelState.FETCHING, ModelState.LOADING, READY]
        assert (pool.status(A).max_model_len, pool.status(A).memory_bytes) == (77, 9)
        assert lease.engine is room.engine(A)
        lease.release()


@virtually
async def test_statuses_come_in_the_catalogs_order_and_names_lead_to_one_model() -> None:
    room = EngineRoom([FakeModel("b"), FakeModel("a", aliases=("first",))])
    async with room.open() as pool:
        assert [status.id for status in pool.statuses()] == [B, A]
        lease = await pool.lease(ModelId("first"), CHAT)
        assert lease.model == A
        assert pool.status(A).num_leases == pool.status(ModelId("first")).num_leases == 1
        assert pool.entry(ModelId("first")).id == A
        lease.release()


@virtually
async def test_an_unknown_name_is_not_found_and_shown_only_in_part() -> None:
    room = room_of("a")
    async with room.open() as pool:
        name = ModelId("x" * 10_000)
        errors = [
            *await asyncio.gather(pool.lease(name, CHAT), pool.load(name), pool.unload(name), return_exceptions=True)
        ]
        for look in (pool.entry, pool.status, lambda name: pool.pin(name, pinned=True)):
            with pytest.raises(ModelNotFound) as caught:
                look(name)
            errors.append(caught.value)
        for error in errors:
            assert isinstance(error, ModelNotFound)
            assert error.param == "model"
            assert len(error.message) < 300


@virtually
async def test_a_status_tells_how_far_the_weights_are_at_that_moment() -> None:
    weights = WeightsStatus("k-0123456789ab", "r1", Trust.FILE, 0, 100)
    room = EngineRoom([FakeModel("a", weights=lambda: weights)])
    assert room.pool.status(A).weights == weights
    weights = replace(weights, present_bytes=50)
    assert room.pool.statuses()[0].weights == weights


@virtually
async def test_stats_are_those_of_the_engines_that_run() -> None:
    room, engine, failing = room_of("a", "b"), FakeEngine(), FakeEngine()
    engine.current, failing.start_error = EngineStats(num_requests_running=3), EngineFault("no")
    room.next(A, engine)
    room.next(B, failing)
    async with room.open() as pool:
        assert pool.stats() == {}
        await use(pool, A)
        with pytest.raises(EngineDown):
            await use(pool, B)
        assert pool.stats() == {A: EngineStats(num_requests_running=3)}


# ------------------------------------------------------------------------------------------------ held requests


@virtually
async def test_any_number_of_requests_cause_one_load() -> None:
    room, engine = room_of("a"), gated()
    room.next(A, engine)
    async with room.open() as pool:
        waiting = [ask(pool, A) for _ in range(50)]
        await engine.starting.wait()
        waiting += [ask(pool, A) for _ in range(50)]
        await turns()
        assert pool.status(A).num_held == 100
        assert engine.start_gate is not None
        engine.start_gate.set()
        leases = await asyncio.gather(*waiting)
        assert (pool.status(A).num_held, pool.status(A).num_leases) == (0, 100)
        assert all(lease.engine is engine for lease in leases)
        for lease in leases:
            lease.release()
        assert pool.status(A).num_leases == 0
    assert (len(room.engines(A)), room.models[A].num_prepared) == (1, 1)


@virtually
async def test_a_model_that_serves_is_leased_without_waiting() -> None:
    room = room_of("a")
    async with room.open() as pool:
        await use(pool, A)
        with pytest.raises(StopIteration) as caught:
            pool.lease(A, CHAT).send(None)
        caught.value.value.release()


@pytest.mark.parametrize("when", ["before", "while it starts", "in that moment", "after"])
@virtually
async def test_a_request_that_is_cancelled_takes_nothing_and_the_others_get_theirs(when: str) -> None:
    room, engine = room_of("a"), gated()
    room.next(A, engine)
    gate = engine.start_gate
    assert gate is not None
    async with room.open() as pool:
        leaving, staying = ask(pool, A), ask(pool, A)
        if when != "before":
            await engine.starting.wait()
            await turns()
        if when == "while it starts":
            leaving.cancel()
            await turns()
        gate.set()
        if when == "after":
            (await leaving).release()
        await until(lambda: when != "in that moment" or pool.status(A).num_leases > 0)
        leaving.cancel()
        (await staying).release()
        await turns()
        assert leaving.cancelled() is (when != "after")
        assert (pool.status(A).num_leases, pool.status(A).num_held) == (0, 0)


@virtually
async def test_only_so_many_requests_are_held_for_one_model_and_the_rest_is_told_when_to_come_back() -> None:
    room = room_of("a", "b", limits=PoolLimits(max_held_requests=2))
    async with room.open() as pool:
        room.next(A, *(gated() for _ in range(2)))
        for eta in (5.0, 12.0):  # a guess first, then what the load before took
            waiting = [ask(pool, A) for _ in range(2)]
            await turns()
            with pytest.raises(ModelLoading, match=r"loading.*too many") as caught:
                await pool.lease(A, CHAT)
            assert caught.value.retry_after_seconds == eta
            other = ask(pool, B)  # which has places of its own
            await asyncio.sleep(12)
            gate = room.engine(A).start_gate
            assert gate is not None
            gate.set()
            for lease in await asyncio.gather(*waiting, other):
                lease.release()
            await pool.unload(A)


@virtually
async def test_a_request_is_held_for_so_long_at_most_and_the_load_goes_on() -> None:
    room, engine = room_of("a", limits=PoolLimits(hold_seconds=60.0)), gated()
    room.next(A, engine)
    async with room.open() as pool:
        since = now()
        with pytest.raises(ModelLoading, match=r"'a'.*loading.*too long") as caught:
            await pool.lease(A, CHAT)
        assert (now() - since, caught.value.retry_after_seconds) == (60.0, 5.0)
        assert engine.start_gate is not None
        engine.start_gate.set()
        await turns()
        assert pool.status(A).state is READY


@virtually
async def test_a_request_with_a_deadline_waits_till_then_and_no_longer() -> None:
    room, engine = room_of("a", limits=PoolLimits(hold_seconds=60.0)), gated()
    room.next(A, engine)
    async with room.open() as pool:
        for deadline in (now() + 10, now() + 100, now() - 1):
            with pytest.raises(DeadlineExpired):
                await pool.lease(A, CHAT, deadline=deadline)
            assert now() >= deadline
        assert now() == 1100.0
        assert (pool.status(A).num_held, len(room.engines(A))) == (0, 1)


@virtually
async def test_an_operation_is_refused_after_the_load_at_first_and_before_it_once_it_is_known() -> None:
    room = room_of("a")
    room.next(A, FakeEngine(operations=[CHAT]))
    async with room.open() as pool:
        with pytest.raises(UnsupportedOperation, match="/v1/embeddings"):
            await pool.lease(A, Operation.EMBEDDING)
        assert pool.status(A).num_leases == 0
        await pool.unload(A)
        with pytest.raises(UnsupportedOperation, match="/v1/embeddings"):
            await pool.lease(A, Operation.EMBEDDING)
        assert len(room.engines(A)) == 1


# ------------------------------------------------------------------------------------------------------ memory


@virtually
async def test_the_model_that_nobody_has_used_for_longest_makes_room() -> None:
    room = room_of("a", "b", "c", budget=2)
    async with room.open() as pool:
        for model in (A, B, A):
            await use(pool, model)
            await asyncio.sleep(1)
        await use(pool, C)
        assert room.states() == {A: READY, B: COLD, C: READY}
        await use(pool, B)
        assert room.states() == {A: COLD, B: READY, C: READY}
        assert [len(room.engines(model)) for model in (A, B, C)] == [1, 2, 1]


@virtually
async def test_a_model_in_use_does_not_make_room_while_another_one_is_idle() -> None:
    room = room_of("a", "b", "c", budget=2)
    async with room.open() as pool:
        lease = await pool.lease(A, CHAT)
        await asyncio.sleep(1)
        await use(pool, B)
        await asyncio.sleep(10 * TURN_SECONDS)
        await use(pool, C)
        assert room.states() == {A: READY, B: COLD, C: READY}
        lease.release()


@pytest.mark.parametrize("is_from_catalog", [True, False])
@virtually
async def test_a_pinned_model_does_not_make_room_and_an_unpinned_one_does_again(is_from_catalog: bool) -> None:
    room = EngineRoom([FakeModel("a", is_pinned=is_from_catalog), FakeModel("b"), FakeModel("c")], budget_bytes=2)
    async with room.open() as pool:
        await use(pool, A, 1.0)
        if not is_from_catalog:
            pool.pin(A, pinned=True)
        for model in (B, C, B, C):
            await use(pool, model, 1.0)
            assert pool.status(A).state is READY
        pool.pin(A, pinned=False)
        assert not pool.status(A).is_pinned
        await use(pool, B)
        assert pool.status(A).state is COLD


@virtually
async def test_a_model_that_starts_does_not_make_room() -> None:
    room, slow = room_of("a", "b", budget=1), gated()
    room.next(A, slow)
    async with room.open() as pool:
        first = ask(pool, A)
        await slow.starting.wait()
        second = ask(pool, B)
        await asyncio.sleep(10 * TURN_SECONDS)
        assert pool.status(A).state is ModelState.LOADING
        assert pool.status(B).detail == "waiting for memory"
        assert slow.start_gate is not None
        slow.start_gate.set()
        (await first).release()
        (await second).release()


@virtually
async def test_a_model_serves_those_it_was_loaded_for_before_it_makes_room() -> None:
    room = room_of("a", "b", "c", budget=1)
    async with room.open() as pool:
        served = [asyncio.create_task(use(pool, model, 1.0)) for model in (A, B, C) for _ in range(3)]
        await asyncio.gather(*served)
        assert [len(room.engines(model)) for model in (A, B, C)] == [1, 1, 1]


@virtually
async def test_a_busy_model_gives_way_after_its_turn_without_losing_a_request_and_comes_back() -> None:
    room = room_of("a", "b", budget=1)
    async with room.open() as pool:
        running = await pool.lease(A, CHAT)
        await asyncio.sleep(5)
        since = now()
        other = ask(pool, B)
        await asyncio.sleep(TURN_SECONDS - 6)
        (await pool.lease(A, CHAT)).release()  # its turn is not over
        await asyncio.sleep(2)
        assert pool.status(A).state is ModelState.DRAINING
        assert now() - since < TURN_SECONDS
        late = ask(pool, A)
        await asyncio.sleep(500)
        assert (pool.status(A).num_held, room.engine(A).num_closes) == (1, 0)  # what runs is never cut
        running.release()
        (await other).release()
        (await late).release()
        assert (len(room.engines(A)), len(room.engines(B))) == (2, 1)


@virtually
async def test_two_models_that_share_the_memory_of_one_serve_every_request_in_turns() -> None:
    room = room_of("a", "b", budget=1)

    async def client(model: ModelId) -> None:
        for _ in range(100):
            await use(pool, model, 1.0)

    async with room.open() as pool:
        since = now()
        await asyncio.gather(*(client(model) for model in (A, B) for _ in range(3)))
        # Both at once would take 100 s. Turns take longer, by what each side waits for the other.
        assert now() - since <= 200 + 2 * TURN_SECONDS
        for model in (A, B):
            assert 3 <= len(room.engines(model)) <= 8


@virtually
async def test_a_model_that_does_not_fit_says_what_would_have_to_go() -> None:
    room = EngineRoom(
        [
            FakeModel("a", memory_bytes=60, is_pinned=True),
            FakeModel("b", memory_bytes=70),
            FakeModel("c", memory_bytes=101),
        ],
        budget_bytes=100,
    )
    async with room.open() as pool:
        await use(pool, A)
        with pytest.raises(NoRoomForModel, match=r"'b'.*: a would have to be unpinned"):
            await pool.lease(B, CHAT)
        with pytest.raises(NoRoomForModel, match=r"'c'.*engine\.memory_budget_bytes"):
            await pool.lease(C, CHAT)
        assert room.states() == {A: READY, B: COLD, C: COLD}
        assert "would have to be unpinned" in pool.status(B).detail
        pool.pin(A, pinned=False)
        await use(pool, B)
        assert room.states() == {A: COLD, B: READY, C: COLD}


@virtually
async def test_a_model_that_nobody_waits_for_any_more_makes_nobody_go() -> None:
    room = room_of("a", "b", budget=1)
    async with room.open() as pool:
        lease = await pool.lease(A, CHAT)
        waiting = ask(pool, B)
        await asyncio.sleep(1)
        assert pool.status(B).state is ModelState.LOADING
        waiting.cancel()
        await turns()
        assert pool.status(B).state is COLD
        await asyncio.sleep(10 * TURN_SECONDS)
        assert (pool.status(A).state, len(room.engines(A))) == (READY, 1)
        lease.release()


@virtually
async def test_a_model_goes_once_it_has_been_idle_for_its_keep_alive_and_stays_away() -> None:
    room = EngineRoom([FakeModel("a", keep_alive_seconds=60.0), FakeModel("b")])
    async with room.open() as pool:
        for model in (A, B):
            await use(pool, model)
        await asyncio.sleep(59)
        await use(pool, A, 100.0)
        await asyncio.sleep(59)
        assert pool.status(A).state is READY
        await asyncio.sleep(2)
        assert room.states() == {A: COLD, B: READY}
        await asyncio.sleep(1000)
        assert len(room.engines(A)) == 1


@pytest.mark.parametrize("state", ["cold", "starting", "ready", "draining"])
@virtually
async def test_a_model_that_an_operator_has_loaded_goes_like_any_other(state: str) -> None:
    room = EngineRoom([FakeModel("a", keep_alive_seconds=60.0)])
    others: list[asyncio.Task[None]] = []
    async with room.open() as pool:
        if state == "starting":
            room.next(A, gated())
            others.append(asyncio.create_task(use(pool, A)))
            await turns()
            asyncio.get_running_loop().call_later(5, _gate(room.engine(A)).set)
        if state in ("ready", "draining"):
            others.append(asyncio.create_task(use(pool, A, 5)))
            await turns()
        if state == "draining":
            others.append(asyncio.create_task(pool.unload(A)))
            await turns()
        await pool.load(A)
        assert pool.status(A).state is READY
        await asyncio.gather(*others)
        await asyncio.sleep(61)
        assert pool.status(A).state is COLD
        await asyncio.sleep(1000)
        assert len(room.engines(A)) == (2 if state == "draining" else 1)


def _gate(engine: FakeEngine) -> asyncio.Event:
    assert engine.start_gate is not None
    return engine.start_gate


# ------------------------------------------------------------------------------------------------------ startup


@virtually
async def test_models_are_loaded_at_startup_in_the_catalogs_order_as_far_as_they_fit() -> None:
    room = room_of("c", "a", "b", "d", budget=2, at_startup=True)
    async with room.open() as pool:
        assert not pool.is_settled
        await pool.until_settled()
        assert pool.is_settled
        assert room.states() == {C: READY, A: READY, B: COLD, D: COLD}
        assert [spec.model for spec in room.specs] == [C, A]
        await asyncio.sleep(1000)
        assert len(room.specs) == 2
        await use(pool, B)
        assert pool.status(B).state is READY
        assert list(room.states().values()).count(READY) == 2


@virtually
async def test_a_startup_model_that_takes_long_to_be_found_does_not_keep_memory_from_later_ones() -> None:
    room = room_of("a", "b", budget=1, at_startup=True)
    gate = room.models[A].prepare_gate = asyncio.Event()
    async with room.open() as pool:
        asyncio.get_running_loop().call_later(60, gate.set)
        await pool.until_settled()
        assert room.states() == {A: COLD, B: READY}
        assert "on demand" in pool.status(A).detail


@virtually
async def test_startup_is_over_once_every_model_of_it_was_tried_whatever_has_become_of_it() -> None:
    room = EngineRoom(
        [
            FakeModel("a", at_startup=True),
            FakeModel("b", at_startup=True),
            FakeModel("c"),
            FakeModel("d", at_startup=True),
        ]
    )
    room.models[A].prepare_error = EngineFault("no")
    slow = gated()
    room.next(B, slow)
    async with room.open() as pool:
        await asyncio.sleep(5)
        assert not pool.is_settled
        assert slow.start_gate is not None
        slow.start_gate.set()
        await pool.until_settled()
        assert room.states() == {A: FAILED, B: READY, C: COLD, D: READY}


@virtually
async def test_a_pool_without_models_to_load_is_settled_at_once() -> None:
    room = room_of("a", "b")
    async with room.open() as pool:
        since = now()
        await pool.until_settled()
        assert now() == since
        assert room.states() == {A: COLD, B: COLD}


@pytest.mark.parametrize("num_turns", [0, 1, 2, 5, 10])
@virtually
async def test_startup_is_over_even_if_the_operator_has_called_a_model_off(num_turns: int) -> None:
    room = room_of("a", "b", at_startup=True)
    room.next(A, gated())
    room.next(B, gated())
    async with room.open() as pool:
        await turns(num_turns)
        await asyncio.gather(pool.unload(A), pool.unload(B))
        await pool.until_settled()
        assert room.states() == {A: COLD, B: COLD}
        await asyncio.sleep(1000)
        assert room.states() == {A: COLD, B: COLD}


@virtually
async def test_a_request_goes_before_what_is_loaded_in_advance() -> None:
    room = EngineRoom([FakeModel(name, at_startup=name != "d") for name in "abcd"], budget_bytes=2)
    gate = asyncio.Event()
    for model in room.models.values():
        model.prepare_gate = gate
    async with room.open() as pool:
        waiting = ask(pool, D)
        await turns()
        gate.set()
        await pool.until_settled()
        (await waiting).release()
        assert [spec.model for spec in room.specs] == [D, A]


# ------------------------------------------------------------------------------------------------------ the end


@virtually
async def test_a_pool_that_ends_refuses_those_who_wait_and_those_who_come() -> None:
    room, engine = room_of("a", "b"), gated()
    room.next(A, engine)
    async with room.open() as pool:
        used = await pool.lease(B, CHAT)
        waiting = [ask(pool, A), asyncio.create_task(pool.load(A))]
        await engine.starting.wait()
        await turns()
    assert [type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)] == [Draining, Draining]
    for model in (A, B):
        with pytest.raises(Draining):
            await pool.lease(model, CHAT)
        with pytest.raises(Draining):
            await pool.load(model)
    assert room.states() == {A: COLD, B: COLD}
    assert (engine.num_closes, room.engine(B).num_closes) == (1, 1)
    assert pool.status(B).num_leases == 1  # it is still held
    used.release()
    assert pool.status(B).num_leases == 0


@pytest.mark.parametrize("num_turns", range(1, 60, 3))
@virtually
async def test_a_pool_that_ends_at_any_moment_ends_every_engine_once(num_turns: int) -> None:
    room = room_of("a", "b", "c", "d", budget=2)
    room.next(C, gated())
    waiting: list[asyncio.Task[Lease]] = []
    async with room.open() as pool:
        waiting = [ask(pool, model) for model in (A, B, C, D) for _ in range(2)]
        await turns(num_turns)
        if num_turns > 30:
            room.engine(A).die()
            await asyncio.sleep(0.21)
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        if isinstance(result, Lease):
            result.release()
        else:
            assert isinstance(result, Draining)
    assert all(status.num_leases == status.num_held == 0 for status in pool.statuses())
    assert set(room.states().values()) == {COLD}


@virtually
async def test_an_engine_that_cannot_be_closed_does_not_keep_the_others_open() -> None:
    room = room_of("a", "b", at_startup=True)
    broken = FakeEngine()
    broken.close_error = OSError("no such process")
    room.next(A, broken)
    async with room.open() as pool:
        await pool.until_settled()
    assert [room.engine(model).num_closes for model in (A, B)] == [1, 1]
