"""A catalog of fake models, and the engines that a pool builds for them.

`FakeModel` decides what happens when one of them is prepared; `EngineRoom` builds its engines, the next of which a test
may set up beforehand, and remembers all of them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace

from headrace_server.domain import ModelId, ModelState, ModelStatus, WeightsStatus
from headrace_server.engine.base import Engine, EngineSpec
from headrace_server.engine.catalog_entry import CatalogEntry, Prepared
from headrace_server.engine.pool import EnginePool, PoolLimits
from tests.fakes.engine import FakeEngine
from tests.fakes.server import fake_pool, running


class FakeModel:
    """A model of the catalog.

    Attributes:
        entry: it, for a pool.
        num_prepared, num_given_back: how often its files were made known, and how often nobody used them any more.
        preparing: set once somebody has asked for them.
        prepare_gate: if set, preparing waits for it.
        prepare_error: raised by preparing.
        weights_failure: set its result to say that its weights will not come.
    """

    def __init__(
        self,
        model: str,
        *,
        memory_bytes: int = 1,
        at_startup: bool = False,
        is_pinned: bool = False,
        keep_alive_seconds: float | None = None,
        aliases: tuple[str, ...] = (),
        weights: Callable[[], WeightsStatus | None] = lambda: None,
    ) -> None:
        self.id = ModelId(model)
        self.num_prepared = 0
        self.num_given_back = 0
        self.preparing = asyncio.Event()
        self.prepare_gate: asyncio.Event | None = None
        self.prepare_error: Exception | None = None
        self.weights_failure: asyncio.Future[str] | None = None
        self.memory_bytes = memory_bytes
        self._spec = EngineSpec(self.id, "fake", aliases=tuple(map(ModelId, aliases)))
        self.entry = CatalogEntry(
            self.id,
            self._spec.aliases,
            "fake:",
            self._prepare,
            weights,
            at_startup=at_startup,
            keep_alive_seconds=keep_alive_seconds,
            is_pinned=is_pinned,
        )

    @property
    def num_in_use(self) -> int:
        """Who uses its files."""
        return self.num_prepared - self.num_given_back

    async def _prepare(self) -> Prepared:
        self.preparing.set()
        if self.prepare_gate is not None:
            await self.prepare_gate.wait()
        if self.prepare_error is not None:
            raise self.prepare_error
        self.num_prepared += 1
        return Prepared(replace(self._spec), self.memory_bytes, self._failed, self._give_back())

    async def _failed(self) -> str:
        if self.weights_failure is None:
            self.weights_failure = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self.weights_failure)

    def _give_back(self) -> Callable[[], None]:
        is_open = True

        def close() -> None:
            nonlocal is_open
            assert is_open, f"the files of {self.id} were given back twice"
            is_open = False
            self.num_given_back += 1

        return close


class EngineRoom:
    """Models, their engines, and a pool of them.

    Attributes:
        pool: with the server's own policies.
        changes: what the pool has told of, in order.
        specs: what engines were built from, in order.
        build_error: raised where an engine is built.
    """

    def __init__(
        self, models: Iterable[FakeModel], *, budget_bytes: int = 10**12, limits: PoolLimits | None = None
    ) -> None:
        self.models = {model.id: model for model in models}
        self.changes: list[ModelStatus] = []
        self.specs: list[EngineSpec] = []
        self.build_error: Exception | None = None
        self._engines: dict[ModelId, list[FakeEngine]] = {model: [] for model in self.models}
        self._next: dict[ModelId, list[FakeEngine]] = {model: [] for model in self.models}
        entries = [model.entry for model in self.models.values()]
        self.pool: EnginePool = fake_pool(
            entries, self.build, budget_bytes=budget_bytes, limits=limits, on_change=self.changes.append
        )

    def build(self, spec: EngineSpec) -> Engine:
        """What the pool calls."""
        if self.build_error is not None:
            raise self.build_error
        self.specs.append(spec)
        prepared = self._next[spec.model]
        engine = prepared.pop(0) if prepared else FakeEngine()
        self._engines[spec.model].append(engine)
        return engine

    def next(self, model: ModelId, *engines: FakeEngine) -> None:
        """The engines that are built next."""
        self._next[model].extend(engines)

    def engines(self, model: ModelId) -> list[FakeEngine]:
        """All that were built, in order."""
        return self._engines[model]

    def engine(self, model: ModelId) -> FakeEngine:
        """The one that was built last."""
        return self._engines[model][-1]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EnginePool]:
        """The pool runs; afterwards every engine has ended once, and every model's files have been given back."""
        async with running(self.pool):
            yield self.pool
        for model in self.models.values():
            assert all(engine.num_closes == 1 for engine in self.engines(model.id)), model.id
            assert model.num_in_use == 0, model.id

    def alive(self, model: ModelId) -> list[FakeEngine]:
        """Its engines that have been built and have not ended."""
        return [engine for engine in self.engines(model) if not engine.has_ended.is_set()]

    def states(self) -> dict[ModelId, ModelState]:
        """How the models stand."""
        return {status.id: status.state for status in self.pool.statuses()}
