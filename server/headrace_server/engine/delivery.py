"""How one attempt to bring a model stands: its events in, what the pool, the log and the admin API are told out.

Knows no processes and no threads: `model_supply` runs the fetch and calls this on the event loop, in the order of the
events. An attempt that has completed or failed stays so; the next one is another `Delivery`, which begins with what
was known. The trust in the bytes is said in the log once for each attempt.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from headrace_models.fetch.events import Completed, Failed, FetchEvent, Indexed, Noted, Progress, Started
from headrace_models.fetch.request import FetchRequest
from headrace_models.inspection import ModelFacts
from headrace_models.reference import Scheme, parse_reference
from headrace_models.trust import Trust
from headrace_server.domain import GroupBytes, ModelId, WeightsStatus

logger = logging.getLogger(__name__)

LOG_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Order:
    """One model to supply."""

    model: ModelId
    request: FetchRequest


@dataclass(frozen=True, slots=True)
class Supplied:
    """A model that an engine may start on. `skeleton` has everything but the weights; those are under `key` in the
    store of `cache_dir`, or on their way there."""

    key: str
    skeleton: Path
    cache_dir: Path
    facts: ModelFacts


class Delivery:
    """One attempt to bring a model's weights, from the moment that somebody asks for it.

    Attributes:
        order: what was ordered.
        weights: how far the weights are; None until the model has been found at its source. Before that, what an
            earlier attempt knew of them.
        failure: why they do not come, in one line; None while they may.
        is_indexed: whether the model has been found, so that `weights.key` is what this attempt brings.
    """

    def __init__(
        self,
        order: Order,
        *,
        on_change: Callable[[ModelId], None],
        clock: Callable[[], float] = time.monotonic,
        weights: WeightsStatus | None = None,
    ) -> None:
        """`on_change` is called whenever `weights` or `failure` has changed."""
        self.order = order
        self.weights = weights
        self.failure: str | None = None
        self.is_indexed = False
        self._failed = asyncio.Event()
        self._on_change = on_change
        self._clock = clock
        self._logged_at = float("-inf")
        self._fetched_before_bytes = 0

    @property
    def is_complete(self) -> bool:
        """Whether everything is here."""
        return self.weights is not None and self.weights.is_complete

    @property
    def is_over(self) -> bool:
        """Whether it has completed or failed, so that nothing changes any more."""
        return self.is_complete or self.failure is not None

    async def failed(self) -> str:
        """Wait until the weights will not come; the one line why. Never returns otherwise."""
        await self._failed.wait()
        return self.failure or ""

    def again(self) -> "Delivery":
        """A fresh attempt at the same, from where this one got to."""
        return self.looked_up(None if self.weights is None else replace(self.weights, is_complete=False))

    def looked_up(self, weights: WeightsStatus | None) -> "Delivery":
        """A fresh attempt at the same, of which the store has so much; complete already if that is all. What this
        server has fetched of it stays counted."""
        if weights is not None:
            known = self.weights if self.weights is not None and self.weights.key == weights.key else weights
            weights = replace(
                weights, problem="", bytes_per_second=0.0, eta_seconds=None, fetched_bytes=known.fetched_bytes
            )
        return Delivery(self.order, on_change=self._on_change, clock=self._clock, weights=weights)

    def start(self, pid: int | None) -> None:
        """The fetching process runs."""
        self._log("fetch_started", pid=pid, reference=self.order.request.reference)

    def take(self, event: FetchEvent) -> None:
        """An event of the fetch; nothing once it is over."""
        if self.is_over:
            return
        match event:
            case Started():
                self._fetched_before_bytes = self.weights.fetched_bytes if self.weights is not None else 0
            case Noted(message):
                self._log("fetch_note", detail=message)
            case Indexed():
                self._index(event)
            case Progress():
                self._advance(event)
            case Completed():
                self._complete(event)
            case Failed(_, message):
                self.fail(message)
            case _:
                assert_never(event)

    def fail(self, reason: str) -> None:
        """The weights will not come; nothing once it is over."""
        if self.is_over:
            return
        self.failure = reason
        if self.weights is not None:
            self.weights = replace(self.weights, problem=reason, bytes_per_second=0.0, eta_seconds=None)
        logger.error("fetch_failed", extra={"model": self.order.model, "detail": reason})
        self._failed.set()
        self._change()

    def end(self) -> None:
        """There will be no more events; a fetch that has not told how it ended has failed."""
        self.fail("the fetch ended without a reason")

    def _index(self, event: Indexed) -> None:
        """The model is known. A fetching process that is started again tells so once more; engines read the first."""
        if not self.is_indexed:
            self.is_indexed = True
            self._found(event)
        elif self.weights is None or self.weights.key != event.key:
            self.fail("the model has changed at its source while it was fetched")

    def _found(self, event: Indexed) -> None:
        known = self.weights
        if known is None or known.key != event.key:
            known = WeightsStatus(event.key, event.revision, event.trust, 0, event.total_bytes)
            self._fetched_before_bytes = 0
        self.weights = replace(known, trust=event.trust, total_bytes=event.total_bytes)
        self._log("fetch_indexed", revision=event.revision, bytes=event.total_bytes, trust=event.trust.value)
        if event.trust is Trust.NONE:
            self._log_unchecked()
        self._change()

    def _advance(self, event: Progress) -> None:
        if self.weights is None or not self.is_indexed:
            return
        self.weights = replace(
            self.weights,
            present_bytes=event.present_bytes,
            total_bytes=event.total_bytes,
            fetched_bytes=self._fetched_before_bytes + event.fetched_bytes,
            bytes_per_second=event.bytes_per_second,
            eta_seconds=event.eta_seconds,
            groups=tuple(GroupBytes(group.name, group.present_bytes, group.total_bytes) for group in event.groups),
        )
        self._log_progress(self.weights)
        self._change()

    def _complete(self, event: Completed) -> None:
        if self.weights is not None and self.is_indexed:
            self.weights = replace(
                self.weights,
                trust=event.trust,
                present_bytes=self.weights.total_bytes,
                is_complete=True,
                fetched_bytes=self._fetched_before_bytes + event.fetched_bytes,
                bytes_per_second=0.0,
                eta_seconds=None,
                groups=tuple(replace(group, present_bytes=group.total_bytes) for group in self.weights.groups),
            )
        seconds, trust = round(event.seconds, 2), event.trust.value
        self._log("fetch_completed", seconds=seconds, fetched_bytes=event.fetched_bytes, trust=trust)
        self._change()

    def _log_progress(self, weights: WeightsStatus) -> None:
        if self._clock() - self._logged_at < LOG_SECONDS:
            return
        self._logged_at = self._clock()
        self._log(
            "fetch_progress",
            present_bytes=weights.present_bytes,
            total_bytes=weights.total_bytes,
            bytes_per_second=round(weights.bytes_per_second),
            eta_seconds=None if weights.eta_seconds is None else round(weights.eta_seconds, 1),
        )

    def _log_unchecked(self) -> None:
        """Worth a warning where the bytes come from somewhere else."""
        is_local = parse_reference(self.order.request.reference).scheme is Scheme.FILE
        detail = f"weights are not checked: {self.order.request.reference} states no digests"
        level = logging.INFO if is_local else logging.WARNING
        logger.log(level, "fetch_unchecked", extra={"model": self.order.model, "detail": detail})

    def _log(self, event: str, **fields: object) -> None:
        logger.info(event, extra={"model": self.order.model, **fields})

    def _change(self) -> None:
        self._on_change(self.order.model)
