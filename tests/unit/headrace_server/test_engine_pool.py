"""The pool: states, names, leases, and that every engine ends exactly once."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace_models.trust import Trust
from headrace_server.domain import EngineStats, ModelId, ModelState, ModelStatus, Operation, WeightsStatus
from headrace_server.engine.base import Engine, EngineSpec
from headrace_server.engine.pool import CatalogEntry, EnginePool, Lease
from headrace_server.errors import (
    EngineDown,
    EngineFault,
    ModelLoading,
    ModelNotFound,
    RequestError,
    Unavailable,
    UnsupportedOperation,
    UsageError,
)
from tests.fakes.engine import FakeEngine
from tests.fakes.server import catalog_entry

A, B, C = ModelId("a"), ModelId("b"), ModelId("c")


def pool_of(engines: dict[ModelId, FakeEngine], changes: list[ModelStatus] | None = None) -> EnginePool:
    """A pool with one entry per engine; the model `a` is also called `first`."""
    entries = [catalog_entry(model, aliases=("first",) if model == A else ()) for model in engines]
    on_change = (changes if changes is not None else []).append
    return EnginePool(entries, build=lambda spec: engines[spec.model], on_change=on_change)


async def test_a_model_goes_from_cold_over_fetching_and_loading_to_ready() -> None:
    changes: list[ModelStatus] = []
    pool = pool_of({A: FakeEngine(max_model_len=77)}, changes)
    assert pool.status(A).state is ModelState.COLD
    assert pool.status(A).max_model_len is None
    await pool.load_all()
    assert [change.state for change in changes] == [ModelState.FETCHING, ModelState.LOADING, ModelState.READY]
    assert pool.status(A).max_model_len == 77
    await pool.close()


async def test_statuses_come_in_the_catalogs_order() -> None:
    pool = pool_of({B: FakeEngine(), A: FakeEngine()})
    assert [status.id for status in pool.statuses()] == [B, A]


async def test_an_alias_leases_the_same_model() -> None:
    pool = pool_of({A: FakeEngine()})
    await pool.load_all()
    lease = pool.lease(ModelId("first"), Operation.CHAT)
    assert lease.model == A
    assert pool.status(A).num_leases == pool.status(ModelId("first")).num_leases == 1
    assert pool.entry(ModelId("first")).id == A


async def test_an_unknown_name_is_not_found_and_shown_only_in_part() -> None:
    pool = pool_of({A: FakeEngine()})
    for ask in (pool.entry, pool.status, lambda name: pool.lease(name, Operation.CHAT)):
        with pytest.raises(ModelNotFound) as caught:
            ask(ModelId("x" * 10_000))
        assert caught.value.param == "model"
        assert len(caught.value.message) < 300


async def test_a_model_that_is_not_ready_refuses_with_its_state_and_when_to_retry() -> None:
    engine = FakeEngine()
    engine.start_gate = asyncio.Event()
    pool = pool_of({A: engine})
    with pytest.raises(ModelLoading, match="cold") as caught:
        pool.lease(A, Operation.CHAT)
    assert caught.value.retry_after_seconds
    loading = asyncio.create_task(pool.load_all())
    await engine.starting.wait()
    with pytest.raises(ModelLoading, match="loading"):
        pool.lease(A, Operation.CHAT)
    engine.start_gate.set()
    await loading
    pool.lease(A, Operation.CHAT).release()


async def test_an_operation_that_the_model_does_not_offer_is_refused_without_a_lease() -> None:
    pool = pool_of({A: FakeEngine(operations=[Operation.CHAT])})
    await pool.load_all()
    with pytest.raises(UnsupportedOperation, match="/v1/embeddings"):
        pool.lease(A, Operation.EMBEDDING)
    assert pool.status(A).num_leases == 0


@pytest.mark.parametrize("error", [EngineFault("no memory left"), EngineDown("the process died"), UsageError("no url")])
async def test_a_model_that_cannot_start_says_why_is_closed_and_leaves_the_others_alone(error: Exception) -> None:
    broken, good = FakeEngine(), FakeEngine()
    broken.start_error = error
    pool = pool_of({A: broken, B: good})
    await pool.load_all()
    assert pool.status(A).state is ModelState.FAILED
    assert pool.status(A).detail == str(error)
    assert pool.status(B).state is ModelState.READY
    assert broken.num_closes == 1
    with pytest.raises(EngineDown, match="'a'"):
        pool.lease(A, Operation.CHAT)


async def test_a_failed_preparation_or_an_unknown_engine_fails_that_model_only() -> None:
    async def prepare() -> EngineSpec:
        raise EngineFault("the weights are not there")

    def build(spec: EngineSpec) -> Engine:
        if spec.model == B:
            raise UsageError("unknown engine")
        return FakeEngine()

    pool = EnginePool([CatalogEntry(A, (), "fake:", prepare), catalog_entry(B), catalog_entry(C)], build=build)
    await pool.load_all()
    assert [status.state for status in pool.statuses()] == [ModelState.FAILED, ModelState.FAILED, ModelState.READY]
    assert [status.detail for status in pool.statuses()] == ["the weights are not there", "unknown engine", ""]


@pytest.mark.parametrize(
    ("reason", "shown"), [("the source went away", "the source went away"), (None, "engine core failed")]
)
async def test_an_engine_that_waited_in_vain_for_its_weights_fails_with_the_reason_of_the_fetch(
    reason: str | None, shown: str
) -> None:
    engine = FakeEngine()
    engine.start_error = EngineFault("engine core failed")
    pool = EnginePool([catalog_entry(A, explain=lambda: reason)], build=lambda _spec: engine)
    await pool.load_all()
    assert (pool.status(A).state, pool.status(A).detail) == (ModelState.FAILED, shown)


async def test_a_status_tells_how_far_the_weights_are_at_that_moment() -> None:
    weights = WeightsStatus("k-0123456789ab", "r1", Trust.FILE, 0, 100)
    pool = EnginePool([catalog_entry(A, weights=lambda: weights)], build=lambda _spec: FakeEngine())
    assert pool.status(A).weights == weights
    weights = replace(weights, present_bytes=50)
    assert pool.statuses()[0].weights == weights


async def test_a_defect_in_an_engines_start_fails_that_model_without_showing_the_defect() -> None:
    broken = FakeEngine()
    broken.start_error = ZeroDivisionError("secret")
    pool = pool_of({A: broken, B: FakeEngine()})
    await pool.load_all()
    assert [status.state for status in pool.statuses()] == [ModelState.FAILED, ModelState.READY]
    assert "secret" not in pool.status(A).detail
    assert pool.status(A).detail


async def test_a_model_follows_its_engine_into_failure_and_back() -> None:
    engine = FakeEngine()
    pool = pool_of({A: engine, B: FakeEngine()})
    await pool.load_all()
    await pool.check()
    assert pool.status(A).state is ModelState.READY
    engine.check_error = EngineDown("the engine process ended")
    await pool.check()
    assert (pool.status(A).state, pool.status(A).detail) == (ModelState.FAILED, "the engine process ended")
    assert pool.status(B).state is ModelState.READY
    engine.check_error = None
    await pool.check()
    assert (pool.status(A).state, pool.status(A).detail) == (ModelState.READY, "")
    await pool.close()


async def test_a_failed_model_with_an_engine_is_leased_because_the_engine_itself_says_whether_it_is_down() -> None:
    engine = FakeEngine()
    pool = pool_of({A: engine})
    await pool.load_all()
    engine.check_error = EngineDown("cannot be reached")
    await pool.check()
    lease = pool.lease(A, Operation.CHAT)
    assert lease.engine is engine
    lease.release()
    await pool.close()


async def test_stats_are_those_of_the_engines_that_run() -> None:
    engine, failing = FakeEngine(), FakeEngine()
    engine.current = EngineStats(num_requests_running=3)
    failing.start_error = EngineFault("no")
    pool = pool_of({A: engine, B: failing})
    assert pool.stats() == {}
    await pool.load_all()
    assert pool.stats() == {A: EngineStats(num_requests_running=3)}


async def test_close_in_the_middle_of_a_start_ends_that_engine_once() -> None:
    engine, later = FakeEngine(), FakeEngine()
    engine.start_gate = asyncio.Event()
    pool = pool_of({A: engine, B: later})
    loading = asyncio.create_task(pool.load_all())
    await engine.starting.wait()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await pool.close()
    await pool.close()
    assert (engine.num_closes, later.num_starts) == (1, 0)


async def test_an_engine_that_cannot_be_closed_does_not_keep_the_others_open() -> None:
    engines = {A: FakeEngine(), B: FakeEngine(), C: FakeEngine()}
    engines[A].close_error = OSError("no such process")
    pool = pool_of(engines)
    await pool.load_all()
    await pool.close()
    assert [engine.num_closes for engine in engines.values()] == [1, 1, 1]


async def test_a_closed_pool_leases_nothing_and_keeps_the_count_of_what_is_still_held() -> None:
    pool = pool_of({A: FakeEngine()})
    await pool.load_all()
    lease = pool.lease(A, Operation.CHAT)
    await pool.close()
    with pytest.raises(Unavailable):
        pool.lease(A, Operation.CHAT)
    assert pool.status(A).num_leases == 1
    lease.release()
    assert pool.status(A).num_leases == 0


class PoolMachine(RuleBasedStateMachine):
    """Leases are counted exactly, whatever happens to the engines; closing ends each engine once."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.engines = {A: FakeEngine(operations=[Operation.CHAT]), B: FakeEngine(), C: FakeEngine()}
        self.engines[C].start_error = EngineFault("never starts")
        self.pool = pool_of(self.engines)
        self.held: list[Lease] = []
        self.is_loaded = False

    @precondition(lambda self: not self.is_loaded)
    @rule()
    def load(self) -> None:
        self.runner.run(self.pool.load_all())
        self.is_loaded = True

    @rule(name=st.sampled_from(["a", "first", "b", "c", "unknown"]), operation=st.sampled_from(Operation))
    def lease(self, name: str, operation: Operation) -> None:
        try:
            self.held.append(self.pool.lease(ModelId(name), operation))
        except RequestError:
            return

    @precondition(lambda self: self.held)
    @rule(data=st.data(), again=st.booleans())
    def release(self, data: st.DataObject, again: bool) -> None:
        lease = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        for _ in range(1 + again):
            lease.release()

    @rule(model=st.sampled_from([A, B]), is_down=st.booleans())
    def check(self, model: ModelId, is_down: bool) -> None:
        self.engines[model].check_error = EngineDown("gone") if is_down else None
        self.runner.run(self.pool.check())

    @rule()
    def close(self) -> None:
        self.runner.run(self.pool.close())
        assert all(engine.num_closes == engine.num_starts for engine in self.engines.values())

    @invariant()
    def leases_are_counted(self) -> None:
        for model in self.engines:
            assert self.pool.status(model).num_leases == sum(lease.model == model for lease in self.held)

    @invariant()
    def no_engine_ends_twice(self) -> None:
        assert all(engine.num_closes <= engine.num_starts <= 1 for engine in self.engines.values())

    def teardown(self) -> None:
        self.runner.run(self.pool.close())
        self.no_engine_ends_twice()
        self.runner.close()


TestPoolMachine = PoolMachine.TestCase
