"""One stay of a model in memory: however it goes, its engine has ended once, then its files were given back."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import pytest

from headrace_server.domain import ModelId, ModelState, Operation
from headrace_server.engine.base import Engine, EngineInfo, EngineSpec
from headrace_server.engine.slot import Lease, Slot
from headrace_server.engine.stay import Stay, StayRules
from headrace_server.errors import EngineDied, EngineDown, EngineFault, ModelLoading, NoRoomForModel, UsageError
from headrace_server.residency import NoRoom, Phase
from headrace_server.scheduling.restarts import FIRST_PAUSE_SECONDS, FREE_RESTARTS, Restarts
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_room import FakeModel
from tests.fakes.virtual_loop import now, turns, until, virtually

A = ModelId("a")
MIB = 1024**2


class Scene:
    """A stay whose pool is the test.

    Attributes:
        story: what happened, in order.
        used_cpus: processors of the engines of other models.
    """

    def __init__(self, *engines: FakeEngine, model: FakeModel | None = None) -> None:
        self.model = model or FakeModel(A, memory_bytes=5)
        self.engines = list(engines) or [FakeEngine()]
        self.story: list[str] = []
        self.used_cpus: tuple[str, ...] = ()
        self.specs: list[EngineSpec] = []
        self.build_error: Exception | None = None
        self._remaining = list(self.engines)
        self.slot = Slot(self.model.entry, Restarts(), lambda status: self._tell(status.state), now)
        self._rules = StayRules(self._build, self._share, self, heartbeat_seconds=60.0, clock=now)
        self.begin()

    def begin(self) -> None:
        """A stay, of which `task` is the run."""
        self.stay = Stay(self.slot, self._rules, since=now(), used_cpus=lambda: self.used_cpus)
        self.task = asyncio.create_task(self.stay.run())

    def _tell(self, state: ModelState) -> None:
        if not self.story or self.story[-1] != state.value:
            self.story.append(state.value)

    def _build(self, spec: EngineSpec) -> Engine:
        if self.build_error is not None:
            raise self.build_error
        self.specs.append(spec)
        return self._remaining.pop(0)

    def _share(self, spec: EngineSpec, used: Iterable[str]) -> str | None:
        return f"not {' '.join(used)}"

    def model_loaded(self, model: ModelId, seconds: float) -> None:
        self.story.append(f"loaded in {seconds:g} s")

    def model_load_failed(self, model: ModelId) -> None:
        self.story.append("load failed")

    def engine_died(self, model: ModelId) -> None:
        self.story.append("died")

    async def placed(self) -> None:
        """The pool has found memory."""
        await until(lambda: self.stay.wanted() is not None)
        self.stay.place()

    async def serving(self) -> FakeEngine:
        """The engine serves."""
        await self.placed()
        await until(lambda: self.slot.serves)
        return self.engines[0]

    def hold(self) -> asyncio.Task[Lease]:
        """A request that waits."""
        return asyncio.create_task(self.slot.held(Operation.CHAT, 1e6))

    async def end(self) -> None:
        """The stay ends, and has left nothing."""
        self.stay.leave()
        await self.task
        self.assert_over()

    def assert_over(self) -> None:
        assert self.task.done()
        assert (self.slot.resident(), self.slot.engine, self.slot.cpus) == (None, None, None)
        assert self.model.num_in_use == 0
        assert all(engine.num_closes == 1 for engine in self.engines if engine not in self._remaining)


def gated(engine: FakeEngine | None = None) -> FakeEngine:
    """An engine whose start waits."""
    engine = engine or FakeEngine()
    engine.start_gate = asyncio.Event()
    return engine


@virtually
async def test_a_stay_fetches_waits_for_memory_starts_serves_and_stops() -> None:
    scene = Scene(gated())
    await scene.placed()
    await scene.engines[0].starting.wait()
    await asyncio.sleep(3)
    assert scene.engines[0].start_gate is not None
    scene.engines[0].start_gate.set()
    await until(lambda: scene.slot.serves)
    assert scene.slot.status().memory_bytes == 5
    await scene.end()
    assert scene.story == ["fetching", "loading", "ready", "loaded in 3 s", "draining", "cold"]
    assert scene.model.num_prepared == 1


@virtually
async def test_nothing_is_built_before_there_is_memory_and_the_wish_ends_with_it() -> None:
    model = FakeModel(A, memory_bytes=5)
    model.prepare_gate = asyncio.Event()
    scene = Scene(model=model)
    since = now()
    await turns()
    assert scene.stay.wanted() is None  # how much is not known yet
    await asyncio.sleep(2)
    model.prepare_gate.set()
    await turns()
    wish = scene.stay.wanted()
    assert wish is not None
    assert (wish.model, wish.memory_bytes, wish.since, wish.may_evict) == (A, 5, since, False)
    assert scene.slot.detail == ""
    await asyncio.sleep(1)
    assert (scene.slot.detail, scene.slot.phase, scene.specs) == ("waiting for memory", None, [])
    scene.stay.place()
    resident = scene.slot.resident()
    assert resident is not None
    assert (resident.phase, resident.memory_bytes, scene.stay.wanted()) == (Phase.STARTING, 5, None)
    await turns()
    await scene.end()


@virtually
async def test_others_have_to_go_for_models_that_somebody_waits_for_and_for_pinned_ones() -> None:
    scene = Scene()
    await turns()
    await asyncio.sleep(4)
    waiting = scene.hold()
    await turns()
    wish = scene.stay.wanted()
    assert wish is not None
    assert (wish.since, wish.may_evict) == (now(), True)
    waiting.cancel()
    await turns()
    wish = scene.stay.wanted()
    assert wish is not None
    assert not wish.may_evict
    scene.slot.is_pinned = True
    wish = scene.stay.wanted()
    assert wish is not None
    assert wish.may_evict
    await scene.serving()
    await scene.end()


@pytest.mark.parametrize(
    ("blocked_by", "told"),
    [
        ((), "the model 'a' needs about 7 MiB of memory and can have 3 MiB (engine.memory_budget_bytes)"),
        (("b", "c"), "the model 'a' needs about 7 MiB of memory and can have 3 MiB: b, c would have to be unpinned"),
    ],
)
@virtually
async def test_a_model_without_room_is_cold_and_says_what_it_would_take(blocked_by: tuple[str, ...], told: str) -> None:
    scene = Scene()
    waiting = scene.hold()
    await turns()
    scene.stay.turn_down(NoRoom(A, 7 * MIB, 3 * MIB, tuple(map(ModelId, blocked_by))))
    with pytest.raises(NoRoomForModel) as caught:
        await waiting
    assert caught.value.message == told
    await scene.task
    scene.assert_over()
    assert (scene.slot.state, scene.slot.detail, scene.specs) == (ModelState.COLD, told, [])
    assert scene.slot.is_tried


@virtually
async def test_a_request_that_comes_after_a_model_was_turned_down_is_not_refused_for_that() -> None:
    scene = Scene()
    await turns()
    scene.stay.turn_down(NoRoom(A, 7, 3))  # loaded in advance, so nobody had to make room
    waiting = scene.hold()
    await scene.task
    await turns()
    assert not waiting.done()
    waiting.cancel()
    await turns()


@pytest.mark.parametrize("error", [EngineFault("no memory left"), EngineDown("the process died"), UsageError("no url")])
@virtually
async def test_an_engine_that_cannot_start_is_ended_and_everybody_is_told(error: Exception) -> None:
    scene = Scene(gated())
    scene.engines[0].start_error = error
    waiting = scene.hold()
    await scene.placed()
    await scene.engines[0].starting.wait()
    gate = scene.engines[0].start_gate
    assert gate is not None
    gate.set()
    with pytest.raises(EngineDown, match=r"'a'.*tried again in 10 s") as caught:
        await waiting
    assert caught.value.retry_after_seconds == FIRST_PAUSE_SECONDS
    await scene.task
    scene.assert_over()
    assert (scene.slot.state, scene.slot.detail) == (ModelState.FAILED, str(error))
    assert scene.slot.retry_at == now() + FIRST_PAUSE_SECONDS
    assert scene.story == ["fetching", "loading", "load failed", "failed"]


@virtually
async def test_a_model_that_cannot_be_prepared_or_built_fails_and_leaves_nothing() -> None:
    unprepared = Scene()
    unprepared.model.prepare_error = EngineFault("the weights are not there")
    await unprepared.task
    assert (unprepared.slot.state, unprepared.slot.detail) == (ModelState.FAILED, "the weights are not there")
    unbuilt = Scene()
    unbuilt.build_error = UsageError("unknown engine")
    await unbuilt.placed()
    await unbuilt.task
    assert (unbuilt.slot.state, unbuilt.slot.detail) == (ModelState.FAILED, "unknown engine")
    for scene in (unprepared, unbuilt):
        scene.assert_over()
        assert scene.story == ["fetching", *(["loading"] if scene is unbuilt else []), "load failed", "failed"]


@pytest.mark.parametrize("where", ["prepare", "build", "start"])
@virtually
async def test_a_defect_fails_the_model_without_being_shown(where: str, caplog: pytest.LogCaptureFixture) -> None:
    scene, defect = Scene(), ZeroDivisionError("secret")
    gate = scene.model.prepare_gate = asyncio.Event()
    match where:
        case "prepare":
            scene.model.prepare_error = defect
        case "build":
            scene.build_error = defect
        case _:
            scene.engines[0].start_error = defect
    waiting = scene.hold()
    await turns()
    gate.set()
    if where != "prepare":
        await scene.placed()
    with pytest.raises(EngineDown) as caught:
        await waiting
    await scene.task
    scene.assert_over()
    assert (scene.slot.state, scene.slot.detail) == (ModelState.FAILED, "internal error; the log says more")
    assert "secret" not in caught.value.message
    assert "secret" in caplog.text


@virtually
async def test_a_start_whose_weights_will_not_come_is_ended_at_once_for_the_reason_of_the_fetch() -> None:
    scene = Scene(gated())
    waiting = scene.hold()
    await scene.placed()
    await scene.engines[0].starting.wait()
    await turns()
    since, failure = now(), scene.model.weights_failure
    assert failure is not None
    failure.set_result("the source went away")
    with pytest.raises(EngineDown):
        await waiting
    await scene.task
    assert now() == since
    scene.assert_over()
    assert (scene.slot.state, scene.slot.detail) == (ModelState.FAILED, "the source went away")


class SlowToStop(FakeEngine):
    """Its start ends in an error once it has been told to stop. `was_told` by `close`, before it was cancelled."""

    was_told = False

    async def start(self) -> EngineInfo:
        self.num_starts += 1
        self.starting.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        self.was_told = self.has_ended.is_set()
        raise EngineFault("closed while it was starting")


@virtually
async def test_a_start_that_is_given_up_is_stopped_by_closing_its_engine_first() -> None:
    engines = [SlowToStop(), SlowToStop()]
    given_up, unweighted = map(Scene, engines)
    for scene in (given_up, unweighted):
        await scene.placed()
        await scene.engines[0].starting.wait()
    await turns()
    given_up.task.cancel()
    assert unweighted.model.weights_failure is not None
    unweighted.model.weights_failure.set_result("the source went away")
    await asyncio.wait({given_up.task, unweighted.task})
    given_up.assert_over()
    unweighted.assert_over()
    assert all(engine.was_told for engine in engines)
    assert unweighted.slot.detail == "the source went away"


@virtually
async def test_a_start_that_fails_together_with_its_weights_fails_once() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    scene = Scene(gated())
    scene.engines[0].start_error = EngineFault("engine core failed")
    await scene.placed()
    await scene.engines[0].starting.wait()
    await turns()
    assert scene.model.weights_failure is not None
    assert scene.engines[0].start_gate is not None
    scene.engines[0].start_gate.set()
    scene.model.weights_failure.set_result("the source went away")
    await scene.task
    scene.assert_over()
    assert scene.slot.detail == "the source went away"
    assert complaints == []


@virtually
async def test_an_engine_gets_processors_that_others_do_not_use_keeps_them_over_a_restart_and_gives_them_back() -> None:
    scene = Scene(FakeEngine(), FakeEngine())
    scene.used_cpus = ("0", "1")
    engine = await scene.serving()
    scene.used_cpus = ("3",)
    engine.die()
    await _restarted(scene)
    assert [spec.cpus for spec in scene.specs] == ["not 0 1", "not 0 1"]
    assert scene.slot.cpus == "not 0 1"
    await scene.end()


async def _restarted(scene: Scene) -> None:
    await until(lambda: scene.slot.engine is scene.engines[-1], every_seconds=0.01)


@virtually
async def test_an_engine_that_dies_is_replaced_within_the_stay_while_requests_wait() -> None:
    scene = Scene(FakeEngine(memory_bytes=8), gated())
    engine = await scene.serving()
    old = scene.slot.lease()
    engine.die("the process ended")
    await scene.engines[1].starting.wait()
    waiting = scene.hold()
    await turns()
    status = scene.slot.status()
    assert (status.state, status.detail) == (ModelState.LOADING, "restarting: the process ended")
    assert (status.is_restarting, status.memory_bytes, status.num_leases) == (True, 8, 1)
    assert (engine.num_closes, scene.model.num_prepared) == (1, 1)
    gate = scene.engines[1].start_gate
    assert gate is not None
    gate.set()
    lease = await waiting
    assert lease.engine is scene.engines[1]
    assert scene.slot.status().num_leases == 2
    assert not scene.slot.status().is_restarting
    lease.release()
    old.release()
    await scene.end()
    assert scene.story.count("died") == 1


@virtually
async def test_a_reported_death_ends_the_engine_at_once_and_the_next_one_is_not_blamed() -> None:
    scene = Scene(FakeEngine(), FakeEngine())
    await scene.serving()
    lease, since = scene.slot.lease(), now()
    lease.report_death()
    assert not scene.slot.serves
    await _until_serves(scene, scene.engines[1])
    assert now() == since
    lease.release()
    await asyncio.sleep(5)
    assert scene.slot.engine is scene.engines[1]
    assert scene.story.count("died") == 1
    await scene.end()


@virtually
async def test_an_engine_that_hangs_is_replaced() -> None:
    scene = Scene(FakeEngine(), FakeEngine())
    engine = await scene.serving()
    engine.heartbeat_gate = asyncio.Event()
    await _restarted(scene)
    assert engine.num_closes == 1
    assert scene.story.count("died") == 1
    await scene.end()


@virtually
async def test_nobody_looks_at_an_engine_before_it_is_ready() -> None:
    scene = Scene(gated())
    scene.engines[0].check_error = EngineDied("not started")
    await scene.placed()
    await asyncio.sleep(3600)
    assert scene.engines[0].num_heartbeats == 0
    assert scene.slot.state is ModelState.LOADING
    scene.task.cancel()
    await asyncio.wait({scene.task})
    scene.assert_over()


@virtually
async def test_the_third_death_in_a_row_ends_the_stay_and_tells_everybody() -> None:
    scene = Scene(*(FakeEngine() for _ in range(FREE_RESTARTS + 1)))
    for number, engine in enumerate(scene.engines):
        await (scene.serving() if number == 0 else _until_serves(scene, engine))
        engine.die(f"death {number}")
        scene.slot.report_death(engine)
    waiting = scene.hold()
    with pytest.raises(EngineDown) as caught:
        await waiting
    assert caught.value.retry_after_seconds == FIRST_PAUSE_SECONDS
    await scene.task
    scene.assert_over()
    assert (scene.slot.state, scene.slot.detail) == (ModelState.FAILED, "the engine of this model has stopped")
    assert scene.slot.status().is_restarting  # also on its next way, until it serves


async def _until_serves(scene: Scene, engine: FakeEngine) -> None:
    await until(lambda: scene.slot.engine is engine)


@virtually
async def test_an_engine_that_does_not_come_up_after_a_death_fails_the_model() -> None:
    second = FakeEngine()
    second.start_error = EngineFault("no")
    scene = Scene(FakeEngine(), second)
    (await scene.serving()).die()
    await scene.task
    scene.assert_over()
    assert (scene.slot.state, scene.slot.detail) == (ModelState.FAILED, "no")


@virtually
async def test_a_model_that_leaves_lets_its_requests_end_and_leases_nothing_more() -> None:
    scene = Scene()
    engine = await scene.serving()
    lease = scene.slot.lease()
    scene.stay.leave()
    scene.stay.leave()
    assert not scene.slot.serves
    await asyncio.sleep(100)
    assert (scene.slot.state, engine.num_closes) == (ModelState.DRAINING, 0)
    lease.release()
    await scene.task
    scene.assert_over()
    assert scene.slot.state is ModelState.COLD


@pytest.mark.parametrize("is_reported", [True, False])
@virtually
async def test_a_death_among_the_last_requests_ends_the_stay(is_reported: bool) -> None:
    scene = Scene()
    engine = await scene.serving()
    lease = scene.slot.lease()
    scene.stay.leave()
    await turns()
    if is_reported:
        lease.report_death()
    else:
        engine.die()
    await scene.task
    assert lease.engine is engine
    scene.assert_over()
    assert scene.story[-3:] == ["draining", "died", "cold"]
    assert scene.slot.state is ModelState.COLD
    lease.release()


@virtually
async def test_a_model_that_does_not_serve_is_not_told_to_leave() -> None:
    scene = Scene(gated())
    await scene.placed()
    await scene.engines[0].starting.wait()
    scene.stay.leave()
    gate = scene.engines[0].start_gate
    assert gate is not None
    gate.set()
    await turns()
    assert scene.slot.serves
    await scene.end()


@virtually
async def test_an_engine_that_cannot_be_closed_gives_its_memory_up_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    engine = await scene.serving()
    engine.close_error = OSError("no such process")
    await scene.end()
    assert "engine_close_failed" in caplog.text


@pytest.mark.parametrize("why", ["left", "start given up", "died"])
@pytest.mark.parametrize("num_cancels", [1, 2])
@virtually
async def test_an_engine_that_is_being_stopped_keeps_its_memory_until_it_has_stopped(
    why: str, num_cancels: int
) -> None:
    scene = Scene(gated(), FakeEngine())
    engine = scene.engines[0]
    gate = engine.close_gate = asyncio.Event()
    await scene.placed()
    await engine.starting.wait()
    assert engine.start_gate is not None
    if why != "start given up":
        engine.start_gate.set()
        await turns()
    match why:
        case "left":
            scene.stay.leave()
        case "died":
            scene.slot.report_death(engine)
        case _:
            scene.task.cancel()
    await turns()
    assert engine.num_closes == 1
    for _ in range(num_cancels):
        scene.task.cancel()
        await turns()
    assert not scene.task.done()
    assert scene.model.num_in_use == 1
    assert scene.slot.resident() is not None
    gate.set()
    await asyncio.wait({scene.task})
    scene.assert_over()
    assert scene.slot.state is ModelState.COLD


@pytest.mark.parametrize("num_turns", range(40))
@pytest.mark.parametrize("is_placed", [True, False])
@virtually
async def test_a_stay_that_is_ended_at_any_moment_leaves_nothing_and_wants_nothing(
    num_turns: int, is_placed: bool
) -> None:
    scene = Scene(FakeEngine(), FakeEngine())
    waiting = scene.hold()
    for number in range(num_turns):
        if is_placed and scene.stay.wanted() is not None:
            scene.stay.place()
        if is_placed and number == 20:
            scene.slot.report_death(scene.engines[0])
        await asyncio.sleep(0)
    scene.task.cancel()
    await until(scene.task.done)
    assert scene.stay.wanted() is None  # in the moment in which it ends
    scene.assert_over()
    assert scene.slot.state is ModelState.COLD
    if waiting.done():
        waiting.result().release()
    scene.slot.refuse_all(ModelLoading("over"))
    await asyncio.gather(waiting, return_exceptions=True)
    assert not scene.slot.is_in_use
