"""What the tests of the placement policy share: a pool that does what the policy says, on a clock of its own.

Engines take `LOAD_SECONDS` to start and `STOP_SECONDS` to stop. After every event the policy is asked, its plan is held
against what no plan may do, carried out, and the policy is asked again: it must have nothing to add.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from headrace_server.domain import ModelId
from headrace_server.residency import NoRoom, Phase, Placement, PlacementPolicy, Resident, Wanted

LOAD_SECONDS = 10.0
STOP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Model:
    """`measured_bytes` is what it takes once it serves; None: what was estimated."""

    estimated_bytes: int
    measured_bytes: int | None = None
    keep_alive_seconds: float | None = None


@dataclass(slots=True)
class Waiting:
    """The requests for one model, each as (since when, how long it will take)."""

    requests: list[tuple[float, float]] = field(default_factory=list)
    in_advance_since: float | None = None

    @property
    def since(self) -> float | None:
        """Since when anybody has wanted the model."""
        return min((since for since, _ in self.requests), default=self.in_advance_since)


def is_at_rest(placement: Placement) -> bool:
    """Whether there is nothing to do."""
    return not (placement.start or placement.evict or placement.drain or placement.no_room)


class VirtualPool:
    """See the module.

    Attributes:
        now: seconds.
        residents: who has memory.
        loads: the models that were started, in order.
        load_times: when each was started last.
        turned_down: what the policy gave up.
        num_served: requests that got a lease.
        num_refused: requests that did not, because their model was turned down.
        longest_wait: of a request that got a lease, in seconds.
    """

    def __init__(self, policy: PlacementPolicy, models: Mapping[str, Model], *, budget_bytes: int) -> None:
        self.now = 0.0
        self.residents: dict[ModelId, Resident] = {}
        self.loads: list[ModelId] = []
        self.load_times: dict[ModelId, float] = {}
        self.turned_down: list[NoRoom] = []
        self.num_served = self.num_refused = 0
        self.longest_wait = 0.0
        self._policy = policy
        self._models = {ModelId(name): model for name, model in models.items()}
        self._budget_bytes = budget_bytes
        self._pinned: set[ModelId] = set()
        self._waiting = {model: Waiting() for model in self._models}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._look_again_at: float | None = None
        self._stays = dict.fromkeys(self._models, 0)

    @property
    def oldest_wait(self) -> float:
        """How long somebody has been waiting who still does."""
        return max((self.now - s for w in self._waiting.values() for s, _ in w.requests), default=0.0)

    # What happens.

    def request(self, model: ModelId, seconds: float) -> None:
        """Somebody wants to use a model for so long."""
        if self._serves(model):
            self._lease(model, self.now, seconds)
        else:
            self._waiting[model].requests.append((self.now, seconds))
        self.settle()

    def wish(self, model: ModelId) -> None:
        """A model is to be loaded in advance."""
        if model not in self.residents and self._waiting[model].since is None:
            self._waiting[model].in_advance_since = self.now
        self.settle()

    def pin(self, model: ModelId, *, pinned: bool) -> None:
        """It stays from now on, or no longer."""
        (self._pinned.add if pinned else self._pinned.discard)(model)
        if model in self.residents:
            self._change(model, is_pinned=pinned)
        self.settle()

    def die(self, model: ModelId) -> None:
        """Its engine is gone, with all leases; another one starts in the same memory."""
        if self._serves(model):
            self._stays[model] += 1
            self._change(model, phase=Phase.STARTING, num_leases=0)
            self._at(LOAD_SECONDS, model, lambda: self._ready(model))
        self.settle()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while (when := self._next_time()) <= end:
            self._step(when)
        self.now = end

    def finish(self) -> None:
        """Let time pass until nothing happens any more."""
        while (when := self._next_time()) < math.inf:
            self._step(when)

    def _next_time(self) -> float:
        times = [self._events[0][0]] if self._events else []
        return min([*times, *([] if self._look_again_at is None else [self._look_again_at])], default=math.inf)

    def _step(self, when: float) -> None:
        self.now = when
        while self._events and self._events[0][0] <= when:
            heapq.heappop(self._events)[2]()
        self.settle()

    # What the policy says.

    def settle(self) -> None:
        """Ask the policy and do what it says."""
        plan = self._plan()
        self._check(plan)
        for no_room in plan.no_room:
            self.turned_down.append(no_room)
            self.num_refused += len(self._waiting[no_room.model].requests)
            self._waiting[no_room.model] = Waiting()
        for model in plan.start:
            self._begin(model)
        for model in (*plan.evict, *plan.drain):
            self._leave(model)
        again = self._plan()
        if self._pinned.intersection(plan.start):  # the policy learns only now that it is pinned, and in others' way
            again = replace(again, no_room=())
        assert is_at_rest(again), f"{plan} was followed by {again}"
        assert again.look_again_at is None or again.look_again_at > self.now
        self._look_again_at = again.look_again_at

    def _plan(self) -> Placement:
        wishes = [
            Wanted(model, self._models[model].estimated_bytes, waiting.since, may_evict=bool(waiting.requests))
            for model, waiting in self._waiting.items()
            if waiting.since is not None and model not in self.residents
        ]
        return self._policy.plan(list(self.residents.values()), wishes, self.now)

    def _check(self, plan: Placement) -> None:
        check_victims(plan, self.residents.values())
        used = sum(resident.memory_bytes for resident in self.residents.values())
        needed = [self._models[model].estimated_bytes for model in plan.start]
        assert used + sum(needed) <= self._budget_bytes or not any(needed), "over the budget"
        starting = [r for r in self.residents.values() if r.phase is Phase.STARTING and r.memory_bytes]
        assert len([size for size in needed if size]) + bool(starting) <= 1 or not any(needed), "two starts at once"
        for model in (*plan.start, *(no_room.model for no_room in plan.no_room)):
            assert self._waiting[model].since is not None
            assert model not in self.residents

    # What comes of it.

    def _begin(self, model: ModelId) -> None:
        self.loads.append(model)
        self.load_times[model] = self.now
        self._stays[model] += 1
        settings = self._models[model]
        self.residents[model] = Resident(
            model,
            settings.estimated_bytes,
            Phase.STARTING,
            is_pinned=model in self._pinned,
            keep_alive_seconds=settings.keep_alive_seconds,
        )
        self._at(LOAD_SECONDS, model, lambda: self._ready(model))

    def _ready(self, model: ModelId) -> None:
        settings = self._models[model]
        size = settings.estimated_bytes if settings.measured_bytes is None else settings.measured_bytes
        self._change(model, phase=Phase.SERVING, memory_bytes=size, serving_since=self.now, idle_since=self.now)
        waiting, self._waiting[model] = self._waiting[model], Waiting()
        for since, seconds in waiting.requests:
            self._lease(model, since, seconds)

    def _lease(self, model: ModelId, since: float, seconds: float) -> None:
        self.num_served += 1
        self.longest_wait = max(self.longest_wait, self.now - since)
        self._change(model, num_leases=self.residents[model].num_leases + 1)
        self._at(seconds, model, lambda: self._release(model))

    def _release(self, model: ModelId) -> None:
        self._change(model, num_leases=self.residents[model].num_leases - 1)
        if self.residents[model].num_leases > 0:
            return
        self._change(model, idle_since=self.now)
        if self.residents[model].phase is Phase.LEAVING:
            self._at(STOP_SECONDS, model, lambda: self._gone(model))

    def _leave(self, model: ModelId) -> None:
        self._change(model, phase=Phase.LEAVING)
        if self.residents[model].num_leases == 0:
            self._at(STOP_SECONDS, model, lambda: self._gone(model))

    def _gone(self, model: ModelId) -> None:
        del self.residents[model]

    def _serves(self, model: ModelId) -> bool:
        return model in self.residents and self.residents[model].phase is Phase.SERVING

    def _change(self, model: ModelId, **changes: object) -> None:
        self.residents[model] = replace(self.residents[model], **changes)  # type: ignore[arg-type]

    def _at(self, seconds: float, model: ModelId, action: Callable[[], None]) -> None:
        """Do something later, unless the engine has gone by then."""
        stay = self._stays[model]

        def act() -> None:
            if self._stays[model] == stay:
                action()

        heapq.heappush(self._events, (self.now + seconds, next(self._order), act))


def check_victims(plan: Placement, residents: Iterable[Resident]) -> None:
    """Whoever goes may go: it serves, is not pinned, and is evicted only if nobody uses it."""
    by_model = {resident.model: resident for resident in residents}
    assert not set(plan.evict) & set(plan.drain)
    for model in (*plan.evict, *plan.drain):
        assert by_model[model].phase is Phase.SERVING
        assert not by_model[model].is_pinned
        assert (by_model[model].num_leases == 0) is (model in plan.evict)
