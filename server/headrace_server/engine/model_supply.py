"""The weights of this server's models: brought when an engine wants them, one fetch at a time, each in a child process.

One task, `run`, does the fetches; everything else may be called on the event loop at any time. An engine may start as
soon as its model is indexed; the loader waits for the tensors. A fetch that nobody needs now makes way for one that
somebody waits for; what has arrived of it stays on disk. The cache may evict a model unless a `Supply` of it is open:
there are as many leases as there are open supplies. All state is on the event loop; threads take leases and read the
child's events.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from headrace_models.errors import ModelError, ModelNotFound
from headrace_models.fetch.client import FetchProcess
from headrace_models.fetch.request import FetchRequest
from headrace_server.domain import ModelId, WeightsStatus
from headrace_server.engine.delivery import Delivery, Order
from headrace_server.engine.supply_fetch import Fetch
from headrace_server.engine.supply_queue import FetchQueue
from headrace_server.engine.supply_slot import Slot, Supply
from headrace_server.engine.supply_store import OpenedModel, open_in_thread, open_stored_model
from headrace_server.engine.supply_turn import Turn
from headrace_server.errors import EngineFault

# One for the fetch, two for leases: those wait for locks that are held for a moment only.
_NUM_THREADS = 3
# What is evicted before an engine can use it is fetched again, so often at most.
_MAX_FETCHES = 3
_ENDED = "the server is stopping"


class ModelSupply:
    """Brings what is asked for. `run` once, then `close`; everything else may be called any time in between."""

    def __init__(
        self,
        orders: Iterable[Order],
        *,
        on_change: Callable[[ModelId], None] = lambda _model: None,
        open_fetch: Callable[[FetchRequest], Fetch] | None = None,
        open_model: Callable[[Path, str], OpenedModel] = open_stored_model,
        threads: Executor | None = None,
    ) -> None:
        """`on_change` is called on the event loop whenever `weights` or `failure` of a model would say more. `threads`
        are shut down by `close`."""
        # As it is now: engines change it, and tell the libraries under them to stay offline.
        environment = dict(os.environ)
        self._slots = {order.model: Slot(Delivery(order, on_change=on_change)) for order in orders}
        self._on_change = on_change
        self._open_fetch = open_fetch or partial(FetchProcess, environment=environment)
        self._open_model = open_model
        self._queue = FetchQueue()
        self._has_work = asyncio.Event()
        self._turn: Turn | None = None
        self._has_ended = False
        self._threads = threads or ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="supply")

    async def run(self) -> None:
        """Fetch what is asked for. Cancelling this ends the fetch under way, and the waiting of whoever wants one."""
        try:
            while True:
                await self._take_turn(await self._next())
        finally:
            self._end()

    def order(self, model: ModelId) -> None:
        """Bring a model's weights in advance, after what engines wait for. Nothing if they are here or on their way."""
        slot = self._slots[model]
        if self._arriving(slot) is None and not (slot.supplies and slot.delivery.is_complete):
            self._queue.order(model)
            self._ask(slot)

    async def open(self, model: ModelId) -> Supply:
        """Return once an engine may start on a model, whose weights may still be arriving. Goes before what is ordered
        in advance; several calls for one model share one fetch. Safe to cancel; a fetch under way then goes on, but
        makes way for what others wait for.

        A model that was brought before and is whole opens without a fetch, in milliseconds. So a reference that may
        change (a branch, a tag, a directory) is looked up at its source once after the server's start, and then only
        when the cache has dropped the model or a part of it.

        Raises:
            EngineFault: the fetch has failed, with its one line, or there will be none. The next call tries again.
        """
        slot = self._slots[model]
        self._check_open()
        with self._opening(slot):
            for _ in range(_MAX_FETCHES):
                supply = await self._open_stored(slot) or await self._open_found(slot, await self._found(slot))
                if supply is not None:
                    return supply
        raise EngineFault(f"the model cache drops {model} as soon as it is there")

    def failure(self, model: ModelId) -> str | None:
        """Why the latest attempt has failed, in one line; None while one may still succeed."""
        return self._slots[model].delivery.failure

    def weights(self, model: ModelId) -> WeightsStatus | None:
        """How far the weights are, as was last known; None until the model has been found at its source."""
        return self._slots[model].delivery.weights

    def close(self) -> None:
        """Give back whatever lease is left, once no engine reads any more. `run` has ended."""
        self._end()
        for slot in self._slots.values():
            for supply in tuple(slot.supplies):
                supply.close()
        self._threads.shutdown(wait=False)

    @contextmanager
    def _opening(self, slot: Slot) -> Iterator[None]:
        slot.num_opening += 1
        try:
            yield
        finally:
            slot.num_opening -= 1
            self._make_way()

    async def _open_stored(self, slot: Slot) -> Supply | None:
        """What the store has, if that is all of it and no fetch is on."""
        known = slot.delivery
        if known.weights is None or self._arriving(slot) is not None:
            return None
        try:
            opened = await self._leased(known)
        except ModelError:  # gone; if something else is wrong, the fetch will meet it too and say so
            self._replace(slot, known, known.looked_up(None))
            return None
        if opened.weights.is_complete:
            found = known if known.is_complete else known.looked_up(opened.weights)
            self._replace(slot, known, found)
            return self._supply(slot, opened, found)
        opened.lease.close()
        self._replace(slot, known, known.looked_up(opened.weights))
        return None

    async def _found(self, slot: Slot) -> Delivery:
        """Wait for an attempt that has found the model. Raises EngineFault when it fails."""
        arriving = self._arriving(slot)
        if arriving is not None and arriving.is_indexed:
            return arriving
        waiter: asyncio.Future[Delivery | None] = asyncio.get_running_loop().create_future()
        slot.waiters.append(waiter)
        try:
            if arriving is None:
                self._want(slot)
            return _good(await waiter)
        finally:
            if waiter in slot.waiters:
                slot.waiters.remove(waiter)
            self._unwant(slot)

    async def _open_found(self, slot: Slot, delivery: Delivery) -> Supply | None:
        """What an attempt brings or has brought, unless it has been evicted since."""
        try:
            opened = await self._leased(delivery)
        except ModelError as error:
            if isinstance(error, ModelNotFound) and delivery.is_complete:
                return None
            if self._turn is not None and self._arriving(slot) is delivery:
                self._turn.fail(str(error))
            raise EngineFault(delivery.failure or str(error)) from error
        if opened.weights.is_complete:  # whatever becomes of the fetch now
            return self._supply(slot, opened, delivery.looked_up(opened.weights))
        if not delivery.is_over:
            return self._supply(slot, opened, delivery)
        opened.lease.close()
        _good(delivery)
        return None

    async def _leased(self, delivery: Delivery) -> OpenedModel:
        """Raises ModelError."""
        if delivery.weights is None:
            raise ModelNotFound("nothing is known of the model")
        cache_dir, key = delivery.order.request.cache_dir, delivery.weights.key
        return await open_in_thread(self._open_model, cache_dir, key, threads=self._threads)

    def _supply(self, slot: Slot, opened: OpenedModel, delivery: Delivery) -> Supply:
        if self._has_ended:
            opened.lease.close()
            raise EngineFault(_ENDED)
        return Supply(slot, opened, delivery, on_close=self._make_way)

    def _want(self, slot: Slot) -> None:
        self._check_open()
        self._queue.want(slot.order.model)
        self._ask(slot)

    def _unwant(self, slot: Slot) -> None:
        if not slot.waiters:
            self._queue.unwant(slot.order.model)

    def _ask(self, slot: Slot) -> None:
        """Something new is in the queue."""
        if slot.delivery.failure is not None:
            self._replace(slot, slot.delivery, slot.delivery.again())
        self._has_work.set()
        self._make_way()

    def _arriving(self, slot: Slot) -> Delivery | None:
        """The attempt at this model that is under way and will not make way."""
        return self._turn.arriving if self._turn is not None and self._turn.slot is slot else None

    def _make_way(self) -> None:
        """End the fetch under way if nobody needs it and somebody waits for another one."""
        if self._turn is not None and self._queue.has_wanted and not self._turn.slot.is_needed:
            self._turn.make_way()

    async def _next(self) -> Slot:
        while (model := self._queue.take()) is None:
            self._has_work.clear()
            await self._has_work.wait()
        return self._slots[model]

    async def _take_turn(self, slot: Slot) -> None:
        turn = self._turn = Turn(slot)
        try:
            if await self._is_stored(slot):
                return
            if not turn.makes_way:
                self._replace(slot, slot.delivery, slot.delivery.again())
                await turn.fetch(self._open_fetch, self._threads)
        finally:
            self._turn = None
            self._unwant(slot)
        if turn.makes_way and not slot.delivery.is_over:
            self._replace(slot, slot.delivery, slot.delivery.again())
            self._queue.put_back(slot.order.model)

    async def _is_stored(self, slot: Slot) -> bool:
        """Whether there is nothing to fetch. Whoever has begun to wait meanwhile gets what there is."""
        supply = await self._open_stored(slot)
        if supply is None:
            return False
        supply.close()
        slot.wake(supply.delivery)
        return True

    def _replace(self, slot: Slot, known: Delivery, delivery: Delivery) -> None:
        """Another attempt is the latest one, unless there is a later one already."""
        if slot.delivery is known and delivery is not known:
            slot.delivery = delivery
            self._on_change(slot.order.model)

    def _check_open(self) -> None:
        if self._has_ended:
            raise EngineFault(_ENDED)

    def _end(self) -> None:
        self._has_ended = True
        for slot in self._slots.values():
            slot.wake(None)


def _good(delivery: Delivery | None) -> Delivery:
    """An attempt that may still succeed, or has. Raises EngineFault."""
    if delivery is None:
        raise EngineFault(_ENDED)
    if delivery.failure is not None:
        raise EngineFault(delivery.failure)
    return delivery
