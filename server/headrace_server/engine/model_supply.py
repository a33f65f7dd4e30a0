"""The weights of this server's models: one fetch after the other, in the catalog's order, each in a child process.

The first one starts before anything imports an engine, and they run ahead of the engines: the next model's fetch
begins when the one before it has ended, whatever its engine is doing. An engine may start as soon as its model is
indexed; the loader waits for the tensors. A thread reads the child's events and hands them to the event loop, where
all state is. Every supplied model stays leased until `close`, so that nobody evicts what is being served.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from headrace_models.errors import FetchFailed, ModelError
from headrace_models.fetch.client import FetchProcess
from headrace_models.fetch.events import FetchEvent, Indexed
from headrace_models.fetch.request import FetchRequest
from headrace_models.inspection import ModelFacts, facts_of
from headrace_models.store.model_store import ModelStore
from headrace_server.domain import ModelId, WeightsStatus
from headrace_server.engine.delivery import Delivery, Order, Supplied

logger = logging.getLogger(__name__)


class Fetch(Protocol):
    """The parent's side of one fetch; `headrace_models.fetch.client.FetchProcess` is one."""

    @property
    def pid(self) -> int | None: ...

    def start(self) -> None: ...

    def events(self) -> Iterator[FetchEvent]: ...

    def stop(self) -> None: ...


@contextmanager
def events_of(fetch: Fetch) -> Iterator[Iterator[FetchEvent]]:
    """The events of a fetch that was started. However the block is left, the child has been ended and waited for."""
    events = fetch.events()
    try:
        yield events
    finally:
        fetch.stop()
        for _ in events:  # its end is where the child is waited for
            continue


class Held(Protocol):
    """A lease on a model of the store."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model of the store that is ours to use until `lease` is closed."""

    skeleton: Path
    facts: ModelFacts
    lease: Held


def open_stored_model(cache_dir: Path, key: str) -> OpenedModel:
    """Lease a model of the store and read what it is. Blocks; raises ModelError."""
    model = ModelStore(cache_dir).open_key(key)
    lease = model.lease()
    try:
        return OpenedModel(model.skeleton, facts_of(model.skeleton, model.index), lease)
    except BaseException:
        lease.close()
        raise


class ModelSupply:
    """Fetches what was ordered. `run` once, then `close`; everything else may be asked any time in between."""

    def __init__(
        self,
        orders: Iterable[Order],
        *,
        on_change: Callable[[ModelId], None] = lambda _model: None,
        open_fetch: Callable[[FetchRequest], Fetch] | None = None,
        open_model: Callable[[Path, str], OpenedModel] = open_stored_model,
    ) -> None:
        """`on_change` is called on the event loop whenever `weights` or `failure` of a model would say more."""
        # As it is now: engines change it, and tell the libraries under them to stay offline.
        environment = dict(os.environ)
        self._deliveries = {order.model: Delivery(order, on_change=on_change) for order in orders}
        self._open_fetch = open_fetch or partial(FetchProcess, environment=environment)
        self._open_model = open_model
        self._leases: list[Held] = []

    async def run(self) -> None:
        """Fetch every model; a failure ends in its model's `failure`. Cancelling this ends the fetch under way."""
        for delivery in self._deliveries.values():
            await self._fetch(delivery)

    async def indexed(self, model: ModelId) -> Supplied:
        """Wait until an engine may start on the model.

        Raises:
            EngineFault: the fetch has failed; its one line.
        """
        return await self._deliveries[model].indexed()

    def failure(self, model: ModelId) -> str | None:
        """Why the weights do not come, in one line; None while they may."""
        return self._deliveries[model].failure

    def weights(self, model: ModelId) -> WeightsStatus | None:
        """How far the weights are; None until the model has been found at its source."""
        return self._deliveries[model].weights

    def close(self) -> None:
        """Give the leases back, once no engine reads any more. `run` has ended."""
        while self._leases:
            self._leases.pop().close()

    async def _fetch(self, delivery: Delivery) -> None:
        fetch = self._open_fetch(delivery.order.request)
        try:
            fetch.start()
        except OSError as error:
            delivery.fail(f"the fetching process cannot be started: {error.strerror or error}")
            return
        delivery.start(fetch.pid)
        reading = asyncio.ensure_future(asyncio.to_thread(self._read, fetch, delivery, asyncio.get_running_loop()))
        try:
            await asyncio.shield(reading)
        except ModelError as error:
            delivery.fail(str(error))
        except Exception:
            logger.exception("fetch_defect", extra={"model": delivery.order.model})
            delivery.fail("internal error; the log says more")
        finally:
            fetch.stop()
            await asyncio.gather(reading, return_exceptions=True)  # a thread cannot be cancelled, but it ends now
        delivery.end()

    def _read(self, fetch: Fetch, delivery: Delivery, loop: asyncio.AbstractEventLoop) -> None:
        """Hand every event to the loop. In a thread; what has been indexed is opened here, because that reads files."""
        key: str | None = None
        with events_of(fetch) as events:
            for event in events:
                if isinstance(event, Indexed) and key is None:
                    key = event.key
                    loop.call_soon_threadsafe(delivery.supply, event, self._open(delivery.order, event))
                elif isinstance(event, Indexed) and event.key != key:
                    raise FetchFailed("the model has changed at its source while it was fetched")
                else:
                    loop.call_soon_threadsafe(delivery.take, event)

    def _open(self, order: Order, event: Indexed) -> Supplied:
        opened = self._open_model(order.request.cache_dir, event.key)
        self._leases.append(opened.lease)
        return Supplied(event.key, opened.skeleton, order.request.cache_dir, opened.facts)
