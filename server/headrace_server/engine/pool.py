"""The engine pool: the models of the catalog, who of them is in memory, and the requests that wait for one.

`run` is the owner task: whenever something has changed it begins the stays of models that are wanted, asks the
placement policy what is to start and who has to go, and tells the stays. Requests reach an engine through a lease and
nothing else. A request for a model that is not in memory is held until it is, so that any number of them cause one
load; the memory that a model was given for them is not taken away before they have had their lease. All state is
touched on the event loop only; the policy sees one consistent moment, because nothing is awaited between looking and
deciding.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from headrace_server.domain import EngineStats, ModelId, ModelStatus, Operation
from headrace_server.engine.base import Engine, EngineSpec
from headrace_server.engine.catalog_entry import CatalogEntry
from headrace_server.engine.slot import Lease, Slot
from headrace_server.engine.stay import PoolObserver, Stay, StayRules, failure
from headrace_server.errors import DeadlineExpired, Draining, ModelLoading, ModelNotFound
from headrace_server.residency import Phase, PlacementPolicy, RestartPolicy

_RETRY_SECONDS = 5.0  # where nothing better is known
_MOMENT_SECONDS = 1e-6  # between models that are wanted at the same time, so that the catalog's order counts


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How long and how many requests may wait for one model, and how long an engine may be silent."""

    hold_seconds: float = 600.0
    max_held_requests: int = 256
    heartbeat_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class PoolPolicies:
    """Who decides about memory, about another try after a fault, and about processors (see `StayRules.share_cpus`)."""

    placement: PlacementPolicy
    restarts: Callable[[], RestartPolicy]
    share_cpus: Callable[[EngineSpec, Iterable[str]], str | None] = lambda _spec, _used: None


class EnginePool:
    """See the module."""

    def __init__(  # noqa: PLR0913 - the composition root calls it once
        self,
        catalog: Iterable[CatalogEntry],
        *,
        build: Callable[[EngineSpec], Engine],
        policies: PoolPolicies,
        observer: PoolObserver,
        limits: PoolLimits | None = None,
        memory_budget_bytes: int | None = None,
        on_change: Callable[[ModelStatus], None] = lambda _status: None,
    ) -> None:
        """`memory_budget_bytes` is what the placement policy keeps, for people to see."""
        self.memory_budget_bytes = memory_budget_bytes
        self._limits = limits or PoolLimits()
        self._policy = policies.placement
        self._on_change = on_change
        self._slots = {entry.id: Slot(entry, policies.restarts(), self._changed, self._clock) for entry in catalog}
        self._names = {name: slot for slot in self._slots.values() for name in (slot.entry.id, *slot.entry.aliases)}
        self._rules = StayRules(build, policies.share_cpus, observer, self._limits.heartbeat_seconds, self._clock)
        self._stays: dict[ModelId, tuple[Stay, asyncio.Task[None]]] = {}
        self._woken = asyncio.Event()
        self._settled = asyncio.Event()
        self._is_closed = False

    # What requests and people ask.

    async def lease(self, name: ModelId, operation: Operation, *, deadline: float | None = None) -> Lease:
        """The right to run one request of this kind on a model; waits until the model is in memory, at the longest
        until `deadline` (on the event loop's clock). Safe to cancel.

        Raises:
            ModelNotFound: no model of that name.
            UnsupportedOperation: the model does not do that.
            Draining: the pool is closed.
            EngineDown: the model has failed and is not to be tried yet, or fails now.
            NoRoomForModel: it does not fit beside what has to stay.
            ModelLoading: too many wait for it already, or it took too long.
            DeadlineExpired: it took longer than the caller wants to wait.
        """
        slot = self._find(name)
        slot.check_operation(operation)
        self._check_open()
        if slot.serves:
            return slot.lease()
        if slot.retry_at is not None and self._clock() < slot.retry_at:
            raise failure(slot, self._clock())
        if slot.num_held >= self._limits.max_held_requests:
            raise self._loading(slot, "too many requests wait for it")
        return await self._held(slot, operation, deadline)

    async def _held(self, slot: Slot, operation: Operation | None, deadline: float | None) -> Lease:
        longest = self._clock() + self._limits.hold_seconds
        until = longest if deadline is None else deadline
        self._woken.set()
        try:
            return await slot.held(operation, until)
        except TimeoutError:
            if deadline is None:
                raise self._loading(slot, "it took too long") from None
            raise DeadlineExpired(f"the deadline has passed while the model {slot.entry.id!r} was loading") from None

    def _loading(self, slot: Slot, why: str) -> ModelLoading:
        seconds = slot.eta_seconds()
        return ModelLoading(
            f"the model {slot.entry.id!r} is not ready yet ({slot.state.value}): {why}",
            retry_after_seconds=_RETRY_SECONDS if seconds is None else seconds,
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise Draining("the server is shutting down", retry_after_seconds=_RETRY_SECONDS)

    def entry(self, name: ModelId) -> CatalogEntry:
        """The catalog entry behind a name or alias.

        Raises:
            ModelNotFound: no model of that name.
        """
        return self._find(name).entry

    def _find(self, name: ModelId) -> Slot:
        try:
            return self._names[name]
        except KeyError:
            raise ModelNotFound(
                f"the model {name[:100]!r} does not exist here; GET /v1/models lists those that do",
                param="model",
            ) from None

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every model as it stands now, in the catalog's order."""
        return tuple(slot.status() for slot in self._slots.values())

    def status(self, name: ModelId) -> ModelStatus:
        """One model as it stands now.

        Raises:
            ModelNotFound: no model of that name.
        """
        return self._find(name).status()

    def stats(self) -> dict[ModelId, EngineStats]:
        """Counters of the engines that run."""
        return {model: slot.engine.stats() for model, slot in self._slots.items() if slot.engine is not None}

    @property
    def is_settled(self) -> bool:
        """Whether every model that is loaded at startup has been tried or turned down."""
        return self._settled.is_set()

    async def until_settled(self) -> None:
        """Wait until `is_settled`."""
        await self._settled.wait()

    # What operators do.

    async def load(self, name: ModelId) -> None:
        """Bring a model into memory as a request would, and return once it serves; a pause after a failure is cut
        short. Cancelling the call leaves the load going.

        Raises:
            RequestError: see `lease`.
        """
        slot = self._find(name)
        self._check_open()
        if not slot.serves:
            slot.retry_at, slot.is_wished = None, True
            lease = await self._held(slot, None, None)
            lease.release()

    async def unload(self, name: ModelId) -> None:
        """Take a model out of memory once its requests have ended; one that is on its way is stopped at once. Requests
        that come later bring it back."""
        slot = self._find(name)
        slot.is_wished, slot.is_tried = False, True
        self._woken.set()
        stay, task = self._stays.get(slot.entry.id, (None, None))
        if stay is None or task is None:
            return
        if slot.phase in (Phase.SERVING, Phase.LEAVING):
            stay.leave()
        else:
            slot.refuse_all(
                ModelLoading(f"the model {slot.entry.id!r} was unloaded", retry_after_seconds=_RETRY_SECONDS)
            )
            task.cancel()
        await asyncio.wait({task})

    def pin(self, name: ModelId, *, pinned: bool) -> None:
        """Say whether a model may be unloaded to make room for others; holds until the server ends."""
        slot = self._find(name)
        slot.is_pinned = pinned
        slot.tell()

    def weights_changed(self, name: ModelId) -> None:
        """A model's weights have come further, or will not come."""
        self._find(name).tell()

    # The owner task.

    async def run(self) -> None:
        """Keep the models in memory that are wanted there. Runs until it is cancelled; then every engine is stopped,
        and nothing is leased any more."""
        async with asyncio.TaskGroup() as tasks:
            try:
                while True:
                    self._woken.clear()
                    self._begin_stays(tasks)
                    look_again_at = self._place()
                    self._settle()
                    await self._sleep(look_again_at)
            finally:
                self._close()

    def _close(self) -> None:
        self._is_closed = True
        for slot in self._slots.values():
            slot.refuse_all(Draining("the server is shutting down", retry_after_seconds=_RETRY_SECONDS))

    def _begin_stays(self, tasks: asyncio.TaskGroup) -> None:
        now = self._clock()
        for position, slot in enumerate(self._slots.values()):
            is_due = slot.num_held > 0 or (slot.is_wished and (slot.retry_at is None or slot.retry_at <= now))
            if is_due and slot.entry.id not in self._stays:
                slot.is_wished = False
                since = now + position * _MOMENT_SECONDS
                stay = Stay(slot, self._rules, since=since, used_cpus=self._used_cpus)
                task = tasks.create_task(stay.run())
                self._stays[slot.entry.id] = stay, task
                task.add_done_callback(lambda _task, model=slot.entry.id: self._end_stay(model))  # type: ignore[misc]

    def _end_stay(self, model: ModelId) -> None:
        del self._stays[model]
        self._woken.set()

    def _used_cpus(self) -> Iterator[str]:
        return (slot.cpus for slot in self._slots.values() if slot.cpus is not None)

    def _place(self) -> float | None:
        """Ask the policy, do what it says; when to ask again."""
        residents = [resident for slot in self._slots.values() if (resident := slot.resident()) is not None]
        wanted = [wish for stay, _ in self._stays.values() if (wish := stay.wanted()) is not None]
        placement = self._policy.plan(residents, wanted, self._clock())
        for no_room in placement.no_room:
            self._stays[no_room.model][0].turn_down(no_room)
        for model in placement.start:
            self._stays[model][0].place()
        for model in (*placement.evict, *placement.drain):
            self._stays[model][0].leave()
        return placement.look_again_at

    def _settle(self) -> None:
        if all(slot.is_tried for slot in self._slots.values() if slot.entry.at_startup):
            self._settled.set()

    async def _sleep(self, look_again_at: float | None) -> None:
        """Until something happens, or it is time to look again."""
        retries = [slot.retry_at for slot in self._slots.values() if slot.retry_at is not None and slot.is_wished]
        starts = [when for slot in self._slots.values() if (when := slot.starts_long_at) is not None]
        times = [when for when in (look_again_at, *retries, *starts) if when is not None]
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(times) if times else None):
                await self._woken.wait()

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()

    def _changed(self, status: ModelStatus) -> None:
        self._woken.set()
        self._on_change(status)
