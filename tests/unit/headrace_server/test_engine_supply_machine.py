"""Everything that may happen to a supply, in any order: no lease is lost, no two fetches at once, nobody is forgotten.

The test decides when threads do their work and how far the event loop gets, so that calls are cancelled wherever they
wait.
"""

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, assert_never

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace_models.fetch.events import Failed
from headrace_server.domain import ModelId
from headrace_server.engine.model_supply import ModelSupply
from headrace_server.engine.supply_slot import Supply
from headrace_server.errors import EngineFault
from tests.fakes.fetching import FakeFetch, FakeFetches, FakeStore, FakeThreads, completed, indexed, order, progress

REFERENCES = {ModelId(name): f"hf://org/{name}" for name in "abc"}
KEYS = {reference: f"{model}-0123456789ab" for model, reference in REFERENCES.items()}
MODELS = st.sampled_from(sorted(REFERENCES))
QUIET_STEPS = 20


class Pace(Enum):
    """How far the event loop gets before the next thing happens; DEAF: one step without news of the fetch."""

    NOT = "not"
    DEAF = "deaf"
    ONE = "one"
    FEW = "few"
    REST = "rest"


class Ending(Enum):
    """How a fetch ends."""

    COMPLETES = "completes"
    FAILS = "fails"
    CHANGES = "changes"
    DIES = "dies"


PACES = st.sampled_from((Pace.NOT, Pace.DEAF, Pace.ONE, Pace.FEW, Pace.REST, Pace.REST, Pace.REST))


@dataclass
class Engine:
    """Whoever opens a model: loads, is cancelled, ends, at the test's will."""

    model: ModelId
    opening: asyncio.Task[Supply]
    watching: asyncio.Task[str] | None = field(default=None)

    @property
    def supply(self) -> Supply | None:
        done = self.opening.done() and not self.opening.cancelled() and self.opening.exception() is None
        return self.opening.result() if done else None


class Supplying(RuleBasedStateMachine):
    """Engines, fetches, the cache's eviction and the threads, each going on by itself."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.fetches, self.threads = FakeFetches(*REFERENCES.values()), FakeThreads()
        self.store = FakeStore(parts=set(KEYS.values()))
        orders = [order(model, reference) for model, reference in REFERENCES.items()]
        self.supply = ModelSupply(
            orders, open_fetch=self.fetches.open, open_model=self.store.open, threads=self.threads
        )
        self.running = self.loop.create_task(self.supply.run())
        self.engines: list[Engine] = []
        self.tasks: list[asyncio.Task[Any]] = [self.running]

    @property
    def fetch(self) -> FakeFetch | None:
        """The one under way that can still say something."""
        latest = self.fetches.opened[-1] if self.fetches.opened else None
        return latest if latest is not None and not latest.is_stopped else None

    def model_of(self, fetch: FakeFetch) -> ModelId:
        return next(model for model, reference in REFERENCES.items() if reference == fetch.request.reference)

    def turn(self, num_steps: int, *, reads: bool = True) -> None:
        """Let the event loop go so far, and the reader of the fetch as far as it comes."""
        for _ in range(num_steps):
            if reads:
                self.threads.catch_up()
            self.loop.run_until_complete(asyncio.sleep(0))

    def settle(self) -> None:
        """Let everything go on until it waits for a fetch."""
        for _ in range(QUIET_STEPS):
            self.turn(2)
            while not self.threads.is_idle:
                self.threads.run_one()
                self.turn(2)

    @rule(model=MODELS, pace=PACES)
    def order(self, model: ModelId, pace: Pace) -> None:
        self.supply.order(model)
        self.go_on(pace)

    @rule(models=st.lists(MODELS, min_size=1, max_size=3), pace=PACES)
    def open(self, models: list[ModelId], pace: Pace) -> None:
        for model in models:
            self.engines.append(Engine(model, self.loop.create_task(self.supply.open(model))))
            self.tasks.append(self.engines[-1].opening)
        self.go_on(pace)

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), pace=PACES)
    def leave(self, data: st.DataObject, pace: Pace) -> None:
        """An engine ends, or is not wanted any more before it has begun."""
        engine = data.draw(st.sampled_from(self.engines))
        self.engines.remove(engine)
        if engine.supply is None:
            engine.opening.cancel()
        else:
            engine.supply.close()
        self.go_on(pace)

    @precondition(lambda self: self.fetch)
    @rule(present_bytes=st.integers(51, 99), pace=PACES)
    def find(self, present_bytes: int, pace: Pace) -> None:
        if (fetch := self.fetch) is not None:
            fetch.tell(indexed(KEYS[fetch.request.reference]), progress(present_bytes))
        self.go_on(pace)

    @precondition(lambda self: self.fetch)
    @rule(how=st.sampled_from(Ending), pace=PACES)
    def finish(self, how: Ending, pace: Pace) -> None:
        if (fetch := self.fetch) is not None:
            key = KEYS[fetch.request.reference]
            match how:
                case Ending.COMPLETES:
                    self.store.parts.discard(key)
                    fetch.tell(indexed(key), completed(key))
                case Ending.FAILS:
                    fetch.tell(Failed("SourceUnavailable", "gone"))
                case Ending.CHANGES:
                    fetch.tell(indexed(key), indexed("other-0123456789ab"))
                case Ending.DIES:
                    fetch.end()
                case _:
                    assert_never(how)
            fetch.end()
        self.go_on(pace)

    @precondition(lambda self: set(KEYS.values()) - self.store.parts)
    @rule(model=MODELS)
    def evict(self, model: ModelId) -> None:
        """The fetching process has a lease of its own while it lives."""
        key = KEYS[REFERENCES[model]]
        is_leased = any(lease.is_held and lease.key == key for lease in self.store.leases)
        latest = self.fetches.opened[-1] if self.fetches.opened else None
        is_fetched = latest is not None and not latest.is_read_to_its_end and self.model_of(latest) == model
        if not is_leased and not is_fetched:
            self.store.parts.add(key)

    @precondition(lambda self: not self.threads.is_idle)
    @rule(pace=PACES)
    def take_lease(self, pace: Pace) -> None:
        self.threads.run_one()
        self.go_on(pace)

    def go_on(self, pace: Pace) -> None:
        """The event loop gets some way before the next thing happens, with or without news of the fetch."""
        match pace:
            case Pace.NOT:
                return
            case Pace.DEAF:
                self.turn(1, reads=False)
            case Pace.ONE | Pace.FEW:
                self.turn(1 if pace is Pace.ONE else 4)
            case Pace.REST:
                self.settle()
                self.check_leases()
                self.check_turns()
                self.check_engines()
            case _:
                assert_never(pace)

    @invariant()
    def one_fetch_at_a_time(self) -> None:
        assert self.fetches.num_overlaps == 0

    @invariant()
    def it_runs(self) -> None:
        assert not self.running.done()

    def check_leases(self) -> None:
        """There are as many as there are open supplies."""
        assert self.store.num_held == sum(engine.supply is not None for engine in self.engines)
        assert all(lease.num_closed <= 1 for lease in self.store.leases)

    def check_turns(self) -> None:
        """Whoever waits, waits for the fetch under way, or for one that somebody else needs."""
        waiting = {engine.model for engine in self.engines if not engine.opening.done()}
        if waiting:
            assert self.fetch is not None
            model = self.model_of(self.fetch)
            assert model in waiting or any(self.is_loading(engine) for engine in self.engines if engine.model == model)
            assert all(self.supply.failure(model) is None for model in waiting)

    def check_engines(self) -> None:
        """Who loads gets its weights, or has been told that they do not come."""
        for engine in self.engines:
            if self.is_loading(engine):
                assert self.fetch is not None
                assert self.model_of(self.fetch) == engine.model

    def is_loading(self, engine: Engine) -> bool:
        if engine.supply is None or engine.supply.supplied.key not in self.store.parts:
            return False
        if engine.watching is None:
            engine.watching = self.loop.create_task(engine.supply.failed())
            self.tasks.append(engine.watching)
            self.turn(2)
        return not engine.watching.done()

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.bring_all()
        finally:
            self.end()

    def bring_all(self) -> None:
        """Once fetches come to their end, nobody waits any more."""
        self.settle()
        for _ in range(4 * len(REFERENCES) * (1 + len(self.engines))):
            if self.fetch is None:
                break
            self.finish(Ending.COMPLETES, Pace.REST)
        self.check_leases()
        self.check_engines()
        assert self.fetch is None
        for engine in self.engines:
            assert engine.supply is not None or isinstance(engine.opening.exception(), EngineFault)

    def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.settle()
        self.supply.close()
        assert self.store.num_held == 0
        assert all(task.done() for task in self.tasks)
        self.loop.close()


TestSupplying = pytest.mark.timeout(120)(Supplying.TestCase)
TestSupplying.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
