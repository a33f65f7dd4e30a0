"""One model of the pool: what state it is in, who uses its engine, and who waits for it.

Keeps the books and starts nothing: `stay` brings engines up and down, `pool` decides when. The invariant: a lease is
given on an engine that serves, and counts until it is released, whatever has become of the engine; nobody waits for an
engine that serves. Touched on the event loop only.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TypeAlias

from headrace_server.domain import EngineCapacity, ModelState, ModelStatus, Operation
from headrace_server.engine.base import Engine, EngineInfo
from headrace_server.engine.catalog_entry import CatalogEntry
from headrace_server.errors import RequestError, UnsupportedOperation
from headrace_server.residency import Phase, Resident, RestartPolicy

logger = logging.getLogger(__name__)

_LONG_FETCH_SECONDS = 10.0  # more than an engine needs to come up; nobody else has to wait for the end of it
_LONG_START_SECONDS = 60.0  # so is this: it compiles, or hangs

OnChange: TypeAlias = Callable[[ModelStatus], None]


class Lease:
    """The right to use one engine, which can take so much (`capacity`); `release` once, whatever happened."""

    def __init__(self, slot: "Slot", engine: Engine) -> None:
        self.engine = engine
        self.capacity = EngineCapacity() if slot.info is None else slot.info.capacity
        self.model = slot.entry.id
        self._slot: Slot | None = slot

    def release(self) -> None:
        """Give the right back; a second call does nothing."""
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.take_back()

    def report_death(self) -> None:
        """The engine has said that it is gone: its model need not wait until somebody looks."""
        if self._slot is not None:
            self._slot.report_death(self.engine)


class Slot:
    """See the module.

    Attributes:
        engine: the engine, while there is one that has started.
        phase: where the model stands in memory; None: it has none.
        memory_bytes: what it takes of the budget: estimated, then measured.
        cpus: processors that its engine was given.
        retry_at: a model that failed is not tried again before.
        is_wished: it is to be in memory without anybody asking for it.
        is_tried: it has been ready, has failed or was turned down since the server started.
    """

    def __init__(
        self, entry: CatalogEntry, restarts: RestartPolicy, on_change: OnChange, clock: Callable[[], float]
    ) -> None:
        self.entry = entry
        self.restarts = restarts
        self.state = ModelState.COLD
        self.detail = ""
        self.engine: Engine | None = None
        self.info: EngineInfo | None = None
        self.phase: Phase | None = None
        self.memory_bytes = 0
        self.cpus: str | None = None
        self.is_pinned = entry.is_pinned
        self.is_restarting = False
        self.is_wished = entry.at_startup or entry.is_pinned
        self.is_tried = False
        self.retry_at: float | None = None
        self.died: asyncio.Event = asyncio.Event()
        self._created = int(time.time())
        self._on_change = on_change
        self._clock = clock
        self._num_leases = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._waiters: dict[asyncio.Future[Lease], float] = {}
        self._serving_since = self._idle_since = self._loading_since = 0.0
        self._load_seconds: float | None = None

    @property
    def serves(self) -> bool:
        """Whether leases are given."""
        return self.engine is not None and self.phase is Phase.SERVING

    @property
    def num_held(self) -> int:
        """Who waits."""
        return sum(not waiter.done() for waiter in self._waiters)  # done: cancelled, and its task has not run since

    @property
    def held_since(self) -> float | None:
        """Since when the first of them has been waiting; None: nobody waits."""
        return min((since for waiter, since in self._waiters.items() if not waiter.done()), default=None)

    @property
    def is_in_use(self) -> bool:
        """Whether anybody holds a lease."""
        return self._num_leases > 0

    def lease(self) -> Lease:
        """A lease on the engine, which serves."""
        if self.engine is None or not self.serves:
            raise AssertionError("there is nothing to lease")
        self._num_leases += 1
        self._idle.clear()
        return Lease(self, self.engine)

    def take_back(self) -> None:
        """A lease was given back."""
        self._num_leases -= 1
        if self._num_leases == 0:
            self._idle_since = self._clock()
            self._idle.set()
            self.tell()

    async def until_idle(self) -> None:
        """Wait until nobody holds a lease."""
        await self._idle.wait()

    async def held(self, operation: Operation | None, until: float) -> Lease:
        """Wait for a lease; None: for no request.

        Raises:
            TimeoutError: it is later than `until`, on the loop's clock.
            UnsupportedOperation: now that it is known, the model does not do that.
            RequestError: the engine could not be brought up.
        """
        waiter: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = self._clock()
        try:
            async with asyncio.timeout_at(until):
                lease = await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()  # it came in the moment in which the waiting ended
            raise
        finally:
            if self._waiters.pop(waiter, None) is not None and not self.num_held:
                self.tell()  # nobody has to make room for it any more
        try:
            self.check_operation(operation)
        except UnsupportedOperation:
            lease.release()
            raise
        return lease

    def check_operation(self, operation: Operation | None) -> None:
        """Raise UnsupportedOperation where it is known that the model does not do that."""
        if operation is not None and self.info is not None and operation not in self.info.operations:
            raise UnsupportedOperation(f"the model {self.entry.id!r} does not serve {operation.value}", param="model")

    def refuse_all(self, error: RequestError) -> None:
        """Nobody gets what they wait for."""
        for waiter in self._take_waiters():
            waiter.set_exception(error)

    def _take_waiters(self) -> list[asyncio.Future[Lease]]:
        waiters = [waiter for waiter in self._waiters if not waiter.done()]
        self._waiters.clear()
        return waiters

    def take_memory(self, num_bytes: int) -> None:
        """The memory is the model's; its engine starts."""
        self.phase, self.memory_bytes = Phase.STARTING, num_bytes
        self._loading_since = self._clock()

    def begin_loading(self, detail: str = "") -> None:
        """The engine starts now."""
        self._loading_since = self._clock()
        self.enter(ModelState.LOADING, detail)

    def begin_serving(self, engine: Engine, info: EngineInfo) -> float:
        """The engine is ready: whoever waits gets a lease at once. Returns how many seconds the start took."""
        now = self._clock()
        self.engine, self.info, self.phase = engine, info, Phase.SERVING
        self.memory_bytes = self.memory_bytes if info.memory_bytes is None else info.memory_bytes
        self.is_tried, self.is_wished, self.is_restarting, self.retry_at = True, False, False, None
        self._load_seconds = now - self._loading_since
        self._serving_since = self._idle_since = now
        self.died.clear()
        self.enter(ModelState.READY)
        for waiter in self._take_waiters():
            waiter.set_result(self.lease())
        return self._load_seconds

    def begin_leaving(self) -> None:
        """No more leases."""
        self.phase = Phase.LEAVING
        self.enter(ModelState.DRAINING)

    def lose_engine(self) -> None:
        """The engine is gone or going; its leases are void, and stay counted until they are given back."""
        self.engine = None
        if self.phase is Phase.SERVING:
            self.phase = Phase.STARTING

    def leave_memory(self, state: ModelState, detail: str = "") -> None:
        """Nothing of the model is in memory any more."""
        self.engine, self.phase, self.memory_bytes, self.cpus = None, None, 0, None
        self.is_tried, self.is_restarting = True, state is ModelState.FAILED
        self.enter(state, detail)

    def report_death(self, engine: Engine) -> None:
        """Whoever used an engine has found it gone: from now on nobody gets a lease on it."""
        if engine is self.engine:
            self.lose_engine()
            self.died.set()

    def reach(self, problem: str | None) -> None:
        """The engine can be reached, or why not. Leases are given all the same: it may be back by the next request."""
        if problem is not None and self.state is ModelState.READY:
            self.enter(ModelState.FAILED, problem)
        elif problem is None and self.state is ModelState.FAILED:
            self.enter(ModelState.READY)

    def enter(self, state: ModelState, detail: str = "") -> None:
        """Change the state and tell of it."""
        if (state, detail) == (self.state, self.detail):
            return
        self.state, self.detail = state, detail
        level = logging.ERROR if state is ModelState.FAILED else logging.INFO
        logger.log(level, "model_state", extra={"model": self.entry.id, "state": state.value, "detail": detail})
        self.tell()

    def tell(self) -> None:
        """Something about the model has changed."""
        self._on_change(self.status())

    def resident(self) -> Resident | None:
        """The model as the placement policy sees it; None: it has no memory."""
        if self.phase is None:
            return None
        weights = self.entry.weights()
        return Resident(
            self.entry.id,
            self.memory_bytes,
            self.phase,
            self._num_leases,
            self.is_pinned,
            self._serving_since,
            self._idle_since,
            self.entry.keep_alive_seconds,
            is_waiting=self._starts_long()
            or (weights is not None and (weights.eta_seconds or 0.0) > _LONG_FETCH_SECONDS),
        )

    @property
    def starts_long_at(self) -> float | None:
        """When others need not wait for this start any longer; None: they need not, or there is none."""
        if self.state is not ModelState.LOADING or self.phase is not Phase.STARTING or self._starts_long():
            return None
        return self._loading_since + _LONG_START_SECONDS

    def _starts_long(self) -> bool:
        return self._clock() >= self._loading_since + _LONG_START_SECONDS

    def status(self) -> ModelStatus:
        """The model as people and programs are told of it."""
        now = self._clock()
        return ModelStatus(
            id=self.entry.id,
            state=self.state,
            source=self.entry.source,
            created=self._created,
            aliases=self.entry.aliases,
            detail=self.detail,
            operations=self.info.operations if self.info else frozenset(),
            max_model_len=self.info.max_model_len if self.info else None,
            num_leases=self._num_leases,
            weights=self.entry.weights(),
            num_held=self.num_held,
            is_pinned=self.is_pinned,
            memory_bytes=self.memory_bytes if self.phase is not None else None,
            idle_seconds=now - self._idle_since if self.serves and not self.is_in_use else None,
            eta_seconds=self.eta_seconds(),
            retry_in_seconds=None if self.retry_at is None else max(0.0, self.retry_at - now),
            is_restarting=self.is_restarting,
            keep_alive_seconds=self.entry.keep_alive_seconds,
        )

    def eta_seconds(self) -> float | None:
        """When it may be ready: what the fetch says, and what the last start took; None where neither is known."""
        is_waiting = self.state is ModelState.LOADING and self.phase is None  # until others have left
        if is_waiting or self.state not in (ModelState.FETCHING, ModelState.LOADING):
            return None
        weights = self.entry.weights()
        fetch = weights.eta_seconds if weights is not None else None
        if self._load_seconds is None:
            return fetch
        spent = self._clock() - self._loading_since if self.state is ModelState.LOADING else 0.0
        return (fetch or 0.0) + max(0.0, self._load_seconds - spent)
