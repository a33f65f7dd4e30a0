"""How the fetch of one model stands: its events in, what the pool, the log and the admin API are told out.

Knows no processes and no threads: `model_supply` runs the fetch and calls this on the event loop, in the order of the
events. The trust in the bytes is said in the log once for each model.
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
from headrace_server.errors import EngineFault

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
    """One model's fetch.

    Attributes:
        order: what was ordered.
        weights: how far the weights are; None until the model has been found at its source.
        failure: why they do not come, in one line; None while they may.
    """

    def __init__(
        self,
        order: Order,
        *,
        on_change: Callable[[ModelId], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change` is called whenever `weights` or `failure` has changed."""
        self.order = order
        self.weights: WeightsStatus | None = None
        self.failure: str | None = None
        self._supplied: Supplied | None = None
        self._settled = asyncio.Event()
        self._on_change = on_change
        self._clock = clock
        self._logged_at = float("-inf")

    async def indexed(self) -> Supplied:
        """Wait until an engine may start.

        Raises:
            EngineFault: the fetch has failed; its one line.
        """
        await self._settled.wait()
        if self._supplied is None or self.failure is not None:
            raise EngineFault(self.failure or "the fetch was stopped")
        return self._supplied

    def start(self, pid: int | None) -> None:
        """The fetching process runs."""
        self._log("fetch_started", pid=pid, reference=self.order.request.reference)

    def supply(self, event: Indexed, supplied: Supplied) -> None:
        """The model is known, and ours to use."""
        self._supplied = supplied
        self.weights = WeightsStatus(event.key, event.revision, event.trust, 0, event.total_bytes)
        self._log("fetch_indexed", revision=event.revision, bytes=event.total_bytes, trust=event.trust.value)
        if event.trust is Trust.NONE:
            self._log_unchecked()
        self._settled.set()
        self._change()

    def take(self, event: FetchEvent) -> None:
        """An event of the fetch."""
        match event:
            case Started() | Indexed():
                return  # `start` and `supply` have told
            case Noted(message):
                self._log("fetch_note", detail=message)
            case Progress():
                self._advance(event)
            case Completed():
                self._complete(event)
            case Failed(_, message):
                self.fail(message)
            case _:
                assert_never(event)

    def fail(self, reason: str) -> None:
        """The weights will not come."""
        self.failure = reason
        if self.weights is not None:
            self.weights = replace(self.weights, problem=reason, bytes_per_second=0.0, eta_seconds=None)
        logger.error("fetch_failed", extra={"model": self.order.model, "detail": reason})
        self._settled.set()
        self._change()

    def end(self) -> None:
        """There will be no more events; a fetch that has not told how it ended has failed."""
        if self.failure is None and not (self.weights is not None and self.weights.is_complete):
            self.fail("the fetch ended without a reason")

    def _advance(self, event: Progress) -> None:
        if self.weights is None:
            return
        self.weights = replace(
            self.weights,
            present_bytes=event.present_bytes,
            total_bytes=event.total_bytes,
            fetched_bytes=event.fetched_bytes,
            bytes_per_second=event.bytes_per_second,
            eta_seconds=event.eta_seconds,
            groups=tuple(GroupBytes(group.name, group.present_bytes, group.total_bytes) for group in event.groups),
        )
        self._log_progress(self.weights)
        self._change()

    def _complete(self, event: Completed) -> None:
        if self.weights is not None:
            self.weights = replace(
                self.weights,
                trust=event.trust,
                present_bytes=self.weights.total_bytes,
                is_complete=True,
                fetched_bytes=event.fetched_bytes,
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
