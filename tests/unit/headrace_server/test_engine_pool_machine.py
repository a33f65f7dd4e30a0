"""The pool, its leases and the placement policy under whatever may happen, on a clock of their own.

What must hold at every moment: the memory that has been given away fits the budget, a model has one engine at most, and
leases are counted. What must hold once people stop asking: everybody who waits is served or told why not.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeAlias

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace_server.domain import ModelId, ModelState, Operation
from headrace_server.engine.base import Engine, EngineInfo, EngineSpec
from headrace_server.engine.pool import PoolLimits
from headrace_server.engine.slot import Lease
from headrace_server.errors import (
    DeadlineExpired,
    EngineDown,
    EngineFault,
    ModelLoading,
    NoRoomForModel,
    UnsupportedOperation,
)
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_room import EngineRoom, FakeModel
from tests.fakes.virtual_loop import VirtualLoop, turns

BUDGET = 3
MODELS = {"a": 1, "b": 1, "c": 2, "d": 3, "tiny": 0, "huge": 4}
# Every model leaves and starts a few times, turns and restarts included.
QUIET_SECONDS = 900

Asked: TypeAlias = "asyncio.Task[Lease] | asyncio.Task[None]"


class SlowEngine(FakeEngine):
    """Takes a while to start and to stop."""

    def __init__(self, seconds: float, *, fails: bool = False) -> None:
        super().__init__(operations=[Operation.CHAT])
        self._seconds = seconds
        self.start_error = EngineFault("no") if fails else None

    async def start(self) -> EngineInfo:
        await asyncio.sleep(self._seconds)
        return await super().start()

    async def close(self) -> None:
        self.num_closes += 1
        await asyncio.sleep(self._seconds)
        self.has_ended.set()


class Room(EngineRoom):
    """Engines that take their time."""

    def __init__(self) -> None:
        models = [
            FakeModel(
                name, memory_bytes=size, at_startup=name in "ab", keep_alive_seconds=40.0 if name == "b" else None
            )
            for name, size in MODELS.items()
        ]
        limits = PoolLimits(hold_seconds=1e5, max_held_requests=4, heartbeat_seconds=8.0)
        super().__init__(models, budget_bytes=BUDGET, limits=limits)
        self.failing: set[ModelId] = set()
        self.seconds = 5.0

    def build(self, spec: EngineSpec) -> Engine:
        self.next(spec.model, SlowEngine(self.seconds, fails=spec.model in self.failing))
        self.failing.discard(spec.model)
        return super().build(spec)


_REFUSALS = (EngineDown, ModelLoading, DeadlineExpired, NoRoomForModel, UnsupportedOperation)

models = st.sampled_from(["a", "b", "c", "d", "a", "b", "c", "tiny", "huge"]).map(ModelId)


class PoolMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.asked: list[Asked] = []
        self.leases: list[Lease] = []
        self.was_pinned = False
        self.do(self._begin())

    async def _begin(self) -> None:
        self.room = Room()
        self.pool = self.room.pool
        self.owner = asyncio.create_task(self.pool.run())

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Let the loop run for this, and see how the models stand at its end."""

        async def seen() -> None:
            await work
            self.statuses = self.pool.statuses()

        self.runner.run(seen())

    def go(self, seconds: float = 0.0, *, num_turns: int = 0) -> None:
        """Time passes, or some turns of the loop."""
        self.do(self._go(seconds, num_turns))

    async def _go(self, seconds: float, num_turns: int) -> None:
        await turns(num_turns)
        if seconds:
            await asyncio.sleep(seconds)
        self._collect()

    def _collect(self) -> None:
        for task in [task for task in self.asked if task.done()]:
            self.asked.remove(task)
            if task.cancelled():
                continue
            error = task.exception()
            if error is None:
                result = task.result()
                self.leases += [result] if result is not None else []
                continue
            assert isinstance(error, _REFUSALS), error
            if isinstance(error, NoRoomForModel) and "'huge'" not in error.message:
                assert self.was_pinned, error

    # What people do.

    @rule(
        model=models,
        operation=st.sampled_from([Operation.CHAT, Operation.CHAT, Operation.CHAT, Operation.SCORE]),
        patience=st.sampled_from([None, None, None, None, None, 0.0, 3.0, 30.0]),
    )
    def ask(self, model: ModelId, operation: Operation, patience: float | None) -> None:
        async def begin() -> None:
            deadline = None if patience is None else asyncio.get_running_loop().time() + patience
            self.asked.append(asyncio.create_task(self.pool.lease(model, operation, deadline=deadline)))

        self.do(begin())

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), num_turns=st.integers(0, 20))
    def cancel(self, data: st.DataObject, num_turns: int) -> None:
        async def after_some_turns() -> None:
            for _ in range(num_turns):
                if task.done():
                    break
                await asyncio.sleep(0)
            task.cancel()

        task = self.asked[data.draw(st.integers(0, len(self.asked) - 1))]
        self.do(after_some_turns())

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), is_dead=st.booleans(), again=st.booleans())
    def finish(self, data: st.DataObject, is_dead: bool, again: bool) -> None:
        async def release() -> None:
            if is_dead and lease.engine.check_error is not None:  # type: ignore[attr-defined]
                lease.report_death()
            for _ in range(1 + again):
                lease.release()

        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        self.do(release())

    @rule(model=models, action=st.sampled_from(["load", "unload", "pin", "unpin"]))
    def operate(self, model: ModelId, action: str) -> None:
        async def begin() -> None:
            match action:
                case "load":
                    self.asked.append(asyncio.create_task(self.pool.load(model)))
                case "unload":
                    self.asked.append(asyncio.create_task(self.pool.unload(model)))
                case _:
                    self.was_pinned |= action == "pin"
                    self.pool.pin(model, pinned=action == "pin")

        self.do(begin())

    # What happens to engines.

    @rule(model=models, how=st.sampled_from(["dies", "hangs", "is away", "is back"]))
    def fault(self, model: ModelId, how: str) -> None:
        async def happen() -> None:
            for engine in self.room.alive(model):
                match how:
                    case "dies":
                        engine.die()
                    case "hangs":
                        engine.heartbeat_gate = asyncio.Event()
                    case "is away":
                        engine.check_error = EngineDown("no route")
                    case _:
                        engine.check_error = None

        self.do(happen())

    @rule(seconds=st.sampled_from([0.0, 5.0]))
    def start_and_stop_in(self, seconds: float) -> None:
        self.room.seconds = seconds

    @rule(model=models)
    def fail_next_start(self, model: ModelId) -> None:
        self.room.failing.add(model)

    @rule(model=models, fails=st.booleans())
    def lose_weights(self, model: ModelId, fails: bool) -> None:
        async def happen() -> None:
            fake = self.room.models[model]
            fake.prepare_error = EngineFault("the source went away") if fails else None
            if fails and fake.weights_failure is not None and not fake.weights_failure.done():
                fake.weights_failure.set_result("the source went away")
            if not fails:
                fake.weights_failure = None

        self.do(happen())

    # Time.

    @rule(num_turns=st.integers(1, 12))
    def some_turns(self, num_turns: int) -> None:
        self.go(num_turns=num_turns)

    @rule(seconds=st.sampled_from([0.2, 1.0, 5.0, 10.0, 35.0, 45.0]))
    def some_time(self, seconds: float) -> None:
        self.go(seconds)

    @rule()
    def a_quiet_while(self) -> None:
        """Everybody finishes soon, and whoever waits is served or told why not."""
        self._heal()
        self.do(self._serve_all())
        assert self.asked == [], [str(task) for task in self.asked]
        for status in self.statuses:
            assert (status.num_held, status.num_leases) == (0, 0), status

    def _heal(self) -> None:
        self.room.failing.clear()
        for fake in self.room.models.values():
            fake.prepare_error = fake.weights_failure = None

    async def _serve_all(self) -> None:
        for _ in range(QUIET_SECONDS):
            self._collect()
            while self.leases:
                self.leases.pop().release()
            if not self.asked:
                return
            await asyncio.sleep(1)

    # What always holds.

    @invariant()
    def memory_that_was_given_away_fits_the_budget(self) -> None:
        assert sum(status.memory_bytes or 0 for status in self.statuses) <= BUDGET

    @invariant()
    def memory_is_given_to_models_that_have_an_engine_or_will(self) -> None:
        for status in self.statuses:
            if self.room.alive(status.id):
                assert status.memory_bytes == MODELS[status.id], status
            if status.state is ModelState.COLD:
                assert status.memory_bytes is None, status

    @invariant()
    def a_model_has_one_engine_at_most_and_it_is_closed_once(self) -> None:
        for model in self.room.models:
            assert len(self.room.alive(model)) <= 1
            assert all(engine.num_closes <= 1 for engine in self.room.engines(model))
            assert 0 <= self.room.models[model].num_in_use <= 1

    @invariant()
    def leases_are_counted(self) -> None:
        for status in self.statuses:
            num_leases = sum(lease.model == status.id for lease in self.leases)
            assert num_leases <= status.num_leases <= num_leases + len(self.asked)

    @invariant()
    def the_pool_runs(self) -> None:
        assert not self.owner.done()

    def teardown(self) -> None:
        try:
            if not self.owner.done():
                self.a_quiet_while()
                self.do(self._end())
        finally:
            self.runner.close()

    async def _end(self) -> None:
        for model in self.room.models:
            await self.pool.unload(model)
        assert set(self.room.states().values()) <= {ModelState.COLD, ModelState.FAILED}
        self._all_has_ended()
        self.owner.cancel()
        await asyncio.wait({self.owner})
        self._all_has_ended()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def _all_has_ended(self) -> None:
        for model in self.room.models.values():
            assert model.num_in_use == 0
            assert all(engine.num_closes == 1 for engine in self.room.engines(model.id))


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50)
TestPoolMachine = PoolMachine.TestCase
