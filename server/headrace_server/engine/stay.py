"""One stay of a model in memory, from the first wish to the last request: fetched, placed, started, served, stopped.

One coroutine tells the whole story, in one task of the pool. An engine that dies or hangs under way is replaced by a
new one within the same stay, in the memory that the model already has, while requests wait; how often that is worth
trying, the model's restart policy says. However a stay ends, its engine has been stopped and its files given back.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from headrace_server.domain import ModelId, ModelState
from headrace_server.engine.base import Engine, EngineInfo, EngineSpec
from headrace_server.engine.catalog_entry import Prepared
from headrace_server.engine.finishing import ended, finished
from headrace_server.engine.slot import Slot
from headrace_server.engine.watch import Watch
from headrace_server.errors import EngineDown, EngineFault, HeadraceError, NoRoomForModel, RequestError
from headrace_server.residency import NoRoom, Wanted

logger = logging.getLogger(__name__)

_MIB = 1024**2
_DEFECT = "internal error; the log says more"
_AT_ONCE_SECONDS = 0.1  # what is placed sooner did not wait


class PoolObserver(Protocol):
    """Counts what happens in the pool."""

    def model_loaded(self, model: ModelId, seconds: float) -> None:
        """An engine has started, in so many seconds."""

    def model_load_failed(self, model: ModelId) -> None:
        """A model could not be loaded."""

    def engine_died(self, model: ModelId) -> None:
        """An engine that served was found dead or hung."""


@dataclass(frozen=True, slots=True)
class StayRules:
    """What all stays of a pool have in common.

    Attributes:
        build: makes an engine, does not start it.
        share_cpus: processors for the engine of a spec, given those of the engines that run; None: its own choice.
        heartbeat_seconds: see `watch`.
        clock: the event loop's.
    """

    build: Callable[[EngineSpec], Engine]
    share_cpus: Callable[[EngineSpec, Iterable[str]], str | None]
    observer: PoolObserver
    heartbeat_seconds: float
    clock: Callable[[], float]


class _GivenUp(HeadraceError):
    """The model is not to be tried again for `seconds`."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Stay:
    """See the module. `run` is the stay; `place`, `turn_down` and `leave` are what the pool decides meanwhile."""

    def __init__(self, slot: Slot, rules: StayRules, *, since: float, used_cpus: Callable[[], Iterable[str]]) -> None:
        """`since`: see `Wanted`."""
        self._slot = slot
        self._rules = rules
        self._used_cpus = used_cpus
        self._since = since
        self._needed_bytes: int | None = None
        self._placed: asyncio.Future[NoRoomForModel | None] = asyncio.get_running_loop().create_future()
        self._leaving = asyncio.Event()

    def wanted(self) -> Wanted | None:
        """The wish for memory; None before its size is known and once it has been fulfilled."""
        if self._needed_bytes is None or self._placed.done():
            return None
        slot = self._slot
        since = self._since if slot.held_since is None else slot.held_since
        return Wanted(slot.entry.id, self._needed_bytes, since, may_evict=slot.num_held > 0 or slot.is_pinned)

    def place(self) -> None:
        """The memory is the model's from now on."""
        self._slot.take_memory(self._needed_bytes or 0)
        self._placed.set_result(None)

    def turn_down(self, no_room: NoRoom) -> None:
        """There will be no memory."""
        if not self._placed.done():
            is_asked_for = self._slot.num_held > 0
            error = NoRoomForModel(_no_room(no_room) if is_asked_for else _left_out(no_room))
            self._placed.set_result(error)
            self._slot.enter(ModelState.COLD, error.message)
            self._slot.refuse_all(error)  # and nobody who comes later: others may have to go for them

    def leave(self) -> None:
        """No more requests; the stay ends with the last one."""
        if self._slot.serves:
            self._slot.begin_leaving()
            self._leaving.set()

    async def run(self) -> None:
        """The stay. Every failure ends in the slot."""
        slot = self._slot
        try:
            await self._stay()
        except NoRoomForModel as error:
            slot.leave_memory(ModelState.COLD, error.message)
        except _GivenUp as error:
            self._give_up(str(error), error.seconds)
        except asyncio.CancelledError:
            slot.leave_memory(ModelState.COLD)
            raise
        except Exception:  # a defect in one engine does not end the others
            logger.exception("stay_failed", extra={"model": slot.entry.id})
            self._give_up(_DEFECT, self._load_failed(_DEFECT).seconds)
        else:
            slot.leave_memory(ModelState.COLD)
        finally:
            self._placed.cancel()  # a stay that is over wants nothing

    def _give_up(self, reason: str, seconds: float) -> None:
        slot = self._slot
        slot.retry_at = self._rules.clock() + seconds
        slot.is_wished = slot.entry.at_startup or slot.is_pinned
        slot.leave_memory(ModelState.FAILED, reason)
        slot.refuse_all(failure(slot, self._rules.clock()))

    async def _stay(self) -> None:
        slot = self._slot
        slot.enter(ModelState.FETCHING)
        with self._load_failures():
            prepared = await slot.entry.prepare()
        try:
            await self._place(prepared.memory_bytes)
            while await self._serve(prepared):
                continue  # with another engine
        finally:
            prepared.close()

    async def _place(self, needed_bytes: int) -> None:
        self._needed_bytes = needed_bytes
        self._slot.tell()
        placed, _ = await asyncio.wait({self._placed}, timeout=_AT_ONCE_SECONDS)
        if not placed:
            self._slot.enter(ModelState.LOADING, "waiting for memory")
        no_room = await self._placed
        if no_room is not None:
            raise no_room

    async def _serve(self, prepared: Prepared) -> bool:
        """Bring up an engine and let it serve until the stay is over, or the engine is. Returns whether to go on."""
        slot = self._slot
        with self._load_failures():
            slot.begin_loading(slot.detail if slot.is_restarting else "")
            engine = self._rules.build(self._spec(prepared.spec))
            info = await self._started(engine, prepared)
        try:
            self._tell_loaded(slot.begin_serving(engine, info))
            problem = await self._until_over(engine)
            if problem is not None:
                self._lose(problem)
            return not self._leaving.is_set()
        finally:
            slot.lose_engine()
            await finished(self._close(engine))

    def _tell_loaded(self, seconds: float) -> None:
        slot = self._slot
        slot.restarts.ready(self._rules.clock())
        self._rules.observer.model_loaded(slot.entry.id, seconds)
        logger.info(
            "model_loaded",
            extra={
                "model": slot.entry.id,
                "seconds": round(seconds, 2),
                "memory_mib": slot.memory_bytes // _MIB,
                "estimated_mib": (self._needed_bytes or 0) // _MIB,
            },
        )

    def _spec(self, spec: EngineSpec) -> EngineSpec:
        slot = self._slot
        slot.cpus = spec.cpus or slot.cpus or self._rules.share_cpus(spec, self._used_cpus())
        return replace(spec, cpus=slot.cpus)

    async def _started(self, engine: Engine, prepared: Prepared) -> EngineInfo:
        """Start the engine, unless its weights will not come: it would wait for them in vain. One that does not start
        is closed."""
        starting = asyncio.ensure_future(engine.start())
        failing = asyncio.ensure_future(_raised(prepared.failed))
        try:
            await asyncio.wait({starting, failing}, return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                failing.result()
            info = starting.result()
            await ended(failing)
        except BaseException:
            await finished(self._end_start(engine, starting, failing))
            raise
        return info

    async def _end_start(self, engine: Engine, *work: "asyncio.Future[Any]") -> None:
        await self._close(engine)  # what ends a start soonest
        await ended(*work)

    async def _until_over(self, engine: Engine) -> str | None:
        watch = Watch(
            engine,
            heartbeat_seconds=self._rules.heartbeat_seconds,
            on_reach=self._slot.reach,
            clock=self._rules.clock,
        )
        endings = {
            asyncio.ensure_future(ending) for ending in (watch.until_down(), self._until_reported(), self._until_left())
        }
        try:
            done, _ = await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
            return next((problem for ending in done if (problem := ending.result()) is not None), None)
        finally:
            await ended(*endings)

    async def _until_reported(self) -> str:
        await self._slot.died.wait()
        return "the engine of this model has stopped"

    async def _until_left(self) -> None:
        await self._leaving.wait()
        await self._slot.until_idle()

    def _lose(self, problem: str) -> None:
        """After a fault: the model keeps its memory and starts again, unless that has been in vain too often."""
        slot = self._slot
        slot.lose_engine()
        self._rules.observer.engine_died(slot.entry.id)
        logger.error("engine_died", extra={"model": slot.entry.id, "detail": problem})
        if self._leaving.is_set():
            return
        slot.is_restarting = True
        slot.enter(ModelState.LOADING, f"restarting: {problem}")
        seconds = slot.restarts.died(self._rules.clock())
        if seconds > 0:
            raise _GivenUp(problem, seconds)

    @contextmanager
    def _load_failures(self) -> Iterator[None]:
        """Failures to fetch or start become a pause."""
        try:
            yield
        except HeadraceError as error:
            raise self._load_failed(str(error)) from error
        except Exception as error:
            logger.exception("model_load_failed", extra={"model": self._slot.entry.id})
            raise self._load_failed(_DEFECT) from error

    def _load_failed(self, reason: str) -> _GivenUp:
        self._rules.observer.model_load_failed(self._slot.entry.id)
        return _GivenUp(reason, self._slot.restarts.load_failed(self._rules.clock()))

    async def _close(self, engine: Engine) -> None:
        try:
            await engine.close()
        except Exception:  # the memory is given up all the same
            logger.exception("engine_close_failed", extra={"model": self._slot.entry.id})


def failure(slot: Slot, now: float) -> RequestError:
    """What a request for a model that failed is told."""
    seconds = max(0.0, (slot.retry_at or now) - now)
    return EngineDown(
        f"the model {slot.entry.id!r} cannot be served and is tried again in {seconds:.0f} s; GET /v1/models says why",
        retry_after_seconds=seconds,
    )


async def _raised(failed: Callable[[], Awaitable[str]]) -> None:
    raise EngineFault(await failed())


def _left_out(no_room: NoRoom) -> str:
    needed, available = _sizes(no_room)
    return f"loaded on demand: it needs about {needed} of memory, {available} were left at startup"


def _sizes(no_room: NoRoom) -> tuple[str, str]:
    return f"{no_room.needed_bytes / _MIB:,.0f} MiB", f"{no_room.available_bytes / _MIB:,.0f} MiB"


def _no_room(no_room: NoRoom) -> str:
    needed, available = _sizes(no_room)
    message = f"the model {no_room.model!r} needs about {needed} of memory and can have {available}"
    if no_room.blocked_by:
        return f"{message}: {', '.join(no_room.blocked_by)} would have to be unpinned"
    return f"{message} (engine.memory_budget_bytes)"
