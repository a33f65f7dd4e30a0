"""How the supply of one model stands: the latest attempt, who waits for it, and who uses what came.

State of `model_supply`, on the event loop only. A supply is in its slot from the moment that its lease is taken until
it is closed.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace_server.engine.delivery import Delivery, Order, Supplied
from headrace_server.engine.supply_store import OpenedModel


class Supply:
    """One engine's right to a model's files, until `close`.

    Attributes:
        supplied: what an engine is started on.
        delivery: the attempt that brings its weights; one that is complete where they were here already.
    """

    def __init__(self, slot: "Slot", opened: OpenedModel, delivery: Delivery, *, on_close: Callable[[], None]) -> None:
        """Takes over the lease of `opened`."""
        cache_dir = slot.order.request.cache_dir
        self.supplied = Supplied(opened.weights.key, opened.skeleton, cache_dir, opened.facts)
        self.delivery = delivery
        self._slot = slot
        self._lease = opened.lease
        self._on_close = on_close
        slot.supplies.add(self)

    async def failed(self) -> str:
        """Wait until the weights will not come, and say why in one line. Never returns otherwise; safe to cancel."""
        return await self.delivery.failed()

    def close(self) -> None:
        """The engine has ended. Twice does nothing."""
        if self in self._slot.supplies:
            self._slot.supplies.remove(self)
            self._lease.close()
            self._on_close()


@dataclass(slots=True, eq=False)
class Slot:
    """One model.

    Attributes:
        delivery: the latest attempt; or one that is still to be made, with what is known before it.
        num_opening: how many are about to get a supply.
        waiters: those of them that wait until an attempt has found the model or is over. They get that attempt; None:
            there will be none.
        supplies: those that are open.
    """

    delivery: Delivery
    num_opening: int = 0
    waiters: list[asyncio.Future[Delivery | None]] = field(default_factory=list)
    supplies: set[Supply] = field(default_factory=set)

    @property
    def order(self) -> Order:
        """What is to be brought."""
        return self.delivery.order

    @property
    def is_needed(self) -> bool:
        """Whether anybody waits for the latest attempt, or loads what it brings."""
        return self.num_opening > 0 or any(supply.delivery is self.delivery for supply in self.supplies)

    def wake(self, delivery: Delivery | None) -> None:
        """Everybody who waits gets this, and waits no more."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(delivery)
