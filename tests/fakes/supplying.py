"""A supply of three models that runs on fakes, and those who ask it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from headrace_server.domain import ModelId
from headrace_server.engine.model_supply import ModelSupply
from headrace_server.engine.supply_slot import Supply
from tests.fakes.fetching import FakeFetch, FakeFetches, FakeStore, completed, indexed, order

A, B, C = ModelId("a"), ModelId("b"), ModelId("c")
HF_A, HF_B, HF_C = "hf://org/a", "hf://org/b", "hf://org/c"
KEY_A, KEY_B, KEY_C = "a-0123456789ab", "b-0123456789ab", "c-0123456789ab"


class Watcher:
    """Waits for what changes; a thread is behind it, so nothing else can be awaited."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def __call__(self, _model: ModelId) -> None:
        self._changed.set()

    async def until(self, holds: Callable[[], object]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()


@asynccontextmanager
async def supplying(
    fetches: FakeFetches, store: FakeStore | None = None, watcher: Watcher | None = None
) -> AsyncIterator[ModelSupply]:
    """A supply of `a`, `b` and `c` that runs; ended, and its leases given back, whatever the test did."""
    store = store or FakeStore()
    orders = [order(A, HF_A), order(B, HF_B), order(C, HF_C)]
    supply = ModelSupply(orders, on_change=watcher or Watcher(), open_fetch=fetches.open, open_model=store.open)
    running = asyncio.create_task(supply.run())
    try:
        yield supply
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        supply.close()
    assert store.num_held == 0
    assert fetches.num_overlaps == 0
    assert all(fetch.is_read_to_its_end for fetch in fetches.opened)


@asynccontextmanager
async def asking(*asked: Awaitable[Supply]) -> AsyncIterator[Sequence[asyncio.Future[Supply]]]:
    """Calls of `open` that are on their way, begun; cancelled at the end if they still are."""
    tasks = [asyncio.ensure_future(call) for call in asked]
    await asyncio.sleep(0)
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def bring(fetch: FakeFetch, key: str) -> None:
    """All of a fetch, from its index to its end."""
    fetch.tell(indexed(key), completed(key))
    fetch.end()
