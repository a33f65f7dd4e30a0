"""One model's turn to be fetched: a fetch in a thread, its events given to the attempt that it is made for.

A turn ends in an attempt that is over, unless it was told to make way for another model's: then its fetch is ended
wherever it is. Whatever happens, cancelling included, the child has been ended and waited for afterwards. Run by the
supply's one task.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor

from headrace_models.errors import ModelError
from headrace_models.fetch.events import FetchEvent, Indexed
from headrace_models.fetch.request import FetchRequest
from headrace_server.engine.delivery import Delivery
from headrace_server.engine.supply_fetch import Fetch, read_fetch
from headrace_server.engine.supply_slot import Slot

logger = logging.getLogger(__name__)


class Turn:
    """A turn, from the moment that its model was taken from the queue.

    Attributes:
        slot: whose it is.
        makes_way: whether it is to end for another model.
    """

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.makes_way = False
        self._delivery: Delivery | None = None
        self._fetch: Fetch | None = None
        self._is_settled = False

    @property
    def arriving(self) -> Delivery | None:
        """The attempt that is under way; None before there is one and once it is over or is to end."""
        delivery = self._delivery
        return None if delivery is None or delivery.is_over or self.makes_way else delivery

    def make_way(self) -> None:
        """End soon, and say nothing about it."""
        self.makes_way = True
        self._stop()

    def fail(self, reason: str) -> None:
        """The attempt under way has failed, for a reason that its fetch does not know of."""
        if self._delivery is not None:
            self._delivery.fail(reason)
            self._settle(self._delivery)

    async def fetch(self, open_fetch: Callable[[FetchRequest], Fetch], threads: Executor) -> None:
        """Make the attempt that stands in the slot."""
        delivery = self._delivery = self.slot.delivery
        try:
            self._fetch = open_fetch(delivery.order.request)
            await self._read(delivery, self._fetch, threads)
        except ModelError as error:
            delivery.fail(str(error))
        except Exception:
            logger.exception("fetch_defect", extra={"model": delivery.order.model})
            delivery.fail("internal error; the log says more")
        if not self.makes_way:
            delivery.end()
        self._settle(delivery)

    async def _read(self, delivery: Delivery, fetch: Fetch, threads: Executor) -> None:
        loop = asyncio.get_running_loop()

        def on_start(pid: int | None) -> None:
            loop.call_soon_threadsafe(delivery.start, pid)

        def on_event(event: FetchEvent) -> None:
            loop.call_soon_threadsafe(self._take, delivery, event)

        reading = asyncio.wrap_future(threads.submit(read_fetch, fetch, on_start=on_start, on_event=on_event))
        try:
            await asyncio.shield(reading)
        finally:
            fetch.stop()
            await asyncio.gather(reading, return_exceptions=True)  # a thread cannot be cancelled, but it ends now

    def _take(self, delivery: Delivery, event: FetchEvent) -> None:
        delivery.take(event)
        if isinstance(event, Indexed) and not self.makes_way:
            self.slot.wake(delivery)
        self._settle(delivery)

    def _settle(self, delivery: Delivery) -> None:
        """Once the attempt is over, and once only: who begins to wait after that waits for the next one."""
        if delivery.is_over and not self._is_settled:
            self._is_settled = True
            self.slot.wake(delivery)
            if delivery.failure is not None:
                self._stop()

    def _stop(self) -> None:
        if self._fetch is not None:
            self._fetch.stop()
