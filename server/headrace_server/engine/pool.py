"""The engine pool: which models there are, what state each is in, and the engines that serve them.

Owns every engine's life. Requests reach an engine only through a lease, which counts as use until it is released.
Models of the catalog are brought up one after the other by `load_all`, which one task of the runtime runs; a model
that fails says why in its status and leaves the others alone. All state is touched on the event loop only.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from headrace_server.domain import EngineStats, ModelId, ModelState, ModelStatus, Operation, WeightsStatus
from headrace_server.engine.base import Engine, EngineInfo, EngineSpec
from headrace_server.errors import (
    Draining,
    EngineDown,
    HeadraceError,
    ModelLoading,
    ModelNotFound,
    UnsupportedOperation,
)

logger = logging.getLogger(__name__)

_LOADING_RETRY_SECONDS = 5.0
_FAILED_RETRY_SECONDS = 30.0
_CHECK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model that this server offers: its engine's spec, less what only its preparation knows.

    `prepare` returns the complete spec as soon as an engine may start on it, while weights may still be on their way;
    it may take minutes and raises `RequestError` with one clear line where it cannot. `weights` says how far they are,
    `explain` why they do not come: an engine that waits for them in vain ends in its worker, which cannot say so well.
    `source` is for people.
    """

    id: ModelId
    aliases: tuple[ModelId, ...]
    source: str
    prepare: Callable[[], Awaitable[EngineSpec]]
    weights: Callable[[], WeightsStatus | None] = lambda: None
    explain: Callable[[], str | None] = lambda: None


@dataclass(slots=True)
class _Slot:
    entry: CatalogEntry
    created: int
    state: ModelState = ModelState.COLD
    detail: str = ""
    engine: Engine | None = None
    info: EngineInfo | None = None
    num_leases: int = 0


class Lease:
    """The right to use one engine; `release` once, whatever happened."""

    def __init__(self, slot: _Slot, engine: Engine) -> None:
        self.engine = engine
        self.model = slot.entry.id
        self._slot: _Slot | None = slot
        slot.num_leases += 1

    def release(self) -> None:
        """Give the right back; a second call does nothing."""
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.num_leases -= 1


class EnginePool:
    """Engines by model."""

    def __init__(
        self,
        catalog: Iterable[CatalogEntry],
        *,
        build: Callable[[EngineSpec], Engine],
        on_change: Callable[[ModelStatus], None] = lambda _status: None,
    ) -> None:
        now = int(time.time())
        self._slots = {entry.id: _Slot(entry, created=now) for entry in catalog}
        self._names = {name: slot for slot in self._slots.values() for name in (slot.entry.id, *slot.entry.aliases)}
        self._build = build
        self._on_change = on_change
        self._closing = False

    async def load_all(self) -> None:
        """Bring up every model of the catalog, in its order. Failures end in the model's status, not here."""
        for slot in self._slots.values():
            await self._load(slot)

    async def _load(self, slot: _Slot) -> None:
        try:
            self._enter(slot, ModelState.FETCHING)
            spec = await slot.entry.prepare()
            self._enter(slot, ModelState.LOADING)
            slot.engine = self._build(spec)
            slot.info = await slot.engine.start()
            self._enter(slot, ModelState.READY)
        except HeadraceError as error:
            await self._fail(slot, slot.entry.explain() or str(error))
        except Exception:
            logger.exception("model_load_failed", extra={"model": slot.entry.id})
            await self._fail(slot, "internal error; the log says more")

    async def _fail(self, slot: _Slot, detail: str) -> None:
        await self._close_engine(slot)
        self._enter(slot, ModelState.FAILED, detail)

    def _enter(self, slot: _Slot, state: ModelState, detail: str = "") -> None:
        slot.state, slot.detail = state, detail
        level = logging.ERROR if state is ModelState.FAILED else logging.INFO
        logger.log(level, "model_state", extra={"model": slot.entry.id, "state": state.value, "detail": detail})
        self._on_change(_status(slot))

    def lease(self, name: ModelId, operation: Operation) -> Lease:
        """The right to run one request of this kind on a model.

        Raises:
            ModelNotFound: no model of that name.
            Draining: the pool is closing.
            ModelLoading: not ready yet.
            EngineDown: it failed to load. (A failed model that still has an engine is leased: the engine itself
                says whether it is down, and an upstream server may be back.)
            UnsupportedOperation: the model does not do that.
        """
        slot = self._find(name)
        if self._closing:
            raise Draining("the server is shutting down", retry_after_seconds=_LOADING_RETRY_SECONDS)
        match slot.state:
            case ModelState.READY | ModelState.FAILED if slot.engine is not None and slot.info is not None:
                if operation not in slot.info.operations:
                    raise UnsupportedOperation(f"the model {name!r} does not serve {operation.value}", param="model")
                return Lease(slot, slot.engine)
            case ModelState.FAILED:
                raise EngineDown(f"the model {name!r} failed to load", retry_after_seconds=_FAILED_RETRY_SECONDS)
            case _:
                raise ModelLoading(
                    f"the model {name!r} is not ready yet ({slot.state.value})",
                    retry_after_seconds=_LOADING_RETRY_SECONDS,
                )

    def entry(self, name: ModelId) -> CatalogEntry:
        """The catalog entry behind a name or alias.

        Raises:
            ModelNotFound: no model of that name.
        """
        return self._find(name).entry

    def _find(self, name: ModelId) -> _Slot:
        try:
            return self._names[name]
        except KeyError:
            raise ModelNotFound(
                f"the model {name[:100]!r} does not exist here; GET /v1/models lists those that do",
                param="model",
            ) from None

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every model as it stands now, in the catalog's order."""
        return tuple(_status(slot) for slot in self._slots.values())

    def status(self, name: ModelId) -> ModelStatus:
        """One model as it stands now.

        Raises:
            ModelNotFound: no model of that name.
        """
        return _status(self._find(name))

    def stats(self) -> dict[ModelId, EngineStats]:
        """Counters of the engines that run."""
        return {model: slot.engine.stats() for model, slot in self._slots.items() if slot.engine is not None}

    async def check(self) -> None:
        """Ask every engine whether it still serves, all at once, and let its model's state follow, both ways."""
        async with asyncio.TaskGroup() as group:
            for slot in self._slots.values():
                if slot.engine is not None and slot.state in (ModelState.READY, ModelState.FAILED):
                    group.create_task(self._check(slot, slot.engine))

    async def _check(self, slot: _Slot, engine: Engine) -> None:
        problem = await _problem(engine)
        if problem is not None and slot.state is ModelState.READY:
            self._enter(slot, ModelState.FAILED, problem)
        elif problem is None and slot.state is ModelState.FAILED:
            self._enter(slot, ModelState.READY)

    async def close(self) -> None:
        """Stop all engines, at the same time. Leases still held see their requests end in errors."""
        self._closing = True
        async with asyncio.TaskGroup() as group:
            for slot in self._slots.values():
                group.create_task(self._close_engine(slot))

    async def _close_engine(self, slot: _Slot) -> None:
        engine, slot.engine = slot.engine, None
        if engine is None:
            return
        try:
            await engine.close()
        except Exception:  # the other engines are to be closed all the same
            logger.exception("engine_close_failed", extra={"model": slot.entry.id})


async def _problem(engine: Engine) -> str | None:
    """Why an engine does not serve; None: it does."""
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            await engine.check()
    except EngineDown as error:
        return error.message
    except TimeoutError:
        return "the engine does not answer"
    return None


def _status(slot: _Slot) -> ModelStatus:
    return ModelStatus(
        id=slot.entry.id,
        state=slot.state,
        source=slot.entry.source,
        created=slot.created,
        aliases=slot.entry.aliases,
        detail=slot.detail,
        operations=slot.info.operations if slot.info else frozenset(),
        max_model_len=slot.info.max_model_len if slot.info else None,
        num_leases=slot.num_leases,
        weights=slot.entry.weights(),
    )
