"""Fetches whose every event the test sends, in place of child processes."""

import asyncio
import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headrace_models.fetch.events import Completed, FetchEvent, GroupProgress, Indexed, Progress, Started
from headrace_models.fetch.request import FetchRequest
from headrace_models.model_facts import ModelFacts
from headrace_models.task import Task
from headrace_models.trust import Trust
from headrace_server.domain import ModelId
from headrace_server.engine.delivery import Order
from headrace_server.engine.model_supply import OpenedModel

FACTS = ModelFacts("LlamaForCausalLM", Task.GENERATE, 100, 50, "bfloat16", 256, 4, 6144, 128, 2, 32)
HF = "hf://org/name"


def order(model: str, reference: str = HF) -> Order:
    """An order as the catalog gives it."""
    return Order(ModelId(model), FetchRequest(reference, Path("/cache")))


def indexed(key: str = "name-0123456789ab", *, trust: Trust = Trust.CHUNK) -> Indexed:
    """A model of 100 bytes has been found."""
    return Indexed(key, "r1", trust, 100)


def progress(present_bytes: int, *, rate: float = 10.0) -> Progress:
    """So many of its 100 bytes are here, all of them in one group."""
    eta = (100 - present_bytes) / rate if rate else None
    return Progress(present_bytes, 100, present_bytes, rate, eta, (GroupProgress("layer.0", present_bytes, 100),))


def completed(key: str = "name-0123456789ab", *, trust: Trust = Trust.CHUNK) -> Completed:
    """All of it is here."""
    return Completed(key, trust, fetched_bytes=100, seconds=2.5)


class FakeFetch:
    """A `Fetch`. `tell` what happens; nothing more comes after `end`, or once it was stopped."""

    def __init__(self, request: FetchRequest, *, start_error: OSError | None = None) -> None:
        self.request = request
        self.pid: int | None = None
        self.is_stopped = False
        self.is_read_to_its_end = False
        self.started = asyncio.Event()
        self._start_error = start_error
        self._events: queue.SimpleQueue[FetchEvent | Exception | None] = queue.SimpleQueue()

    def start(self) -> None:
        if self._start_error is not None:
            raise self._start_error
        self.pid = 4321
        self.started.set()
        self.tell(Started(self.request.reference, 4321))

    def events(self) -> Iterator[FetchEvent]:
        while (event := self._events.get()) is not None and not self.is_stopped:
            if isinstance(event, Exception):
                raise event
            yield event
        self.is_read_to_its_end = True

    def stop(self) -> None:
        self.is_stopped = True
        self._events.put(None)

    def tell(self, *events: FetchEvent | Exception) -> None:
        """These happen next; an exception is a defect in the reading of events."""
        for event in events:
            self._events.put(event)

    def end(self) -> None:
        """The child is gone."""
        self._events.put(None)


class FakeFetches:
    """What opens fetches, and keeps them by reference."""

    def __init__(self, *references: str) -> None:
        self._by_reference = {reference: FakeFetch(FetchRequest(reference, Path("/cache"))) for reference in references}

    def __getitem__(self, reference: str) -> FakeFetch:
        return self._by_reference[reference]

    def open(self, request: FetchRequest) -> FakeFetch:
        """`open_fetch`."""
        return self._by_reference[request.reference]


@dataclass(slots=True)
class FakeLease:
    """A lease that tells whether it is held."""

    is_held: bool = True

    def close(self) -> None:
        self.is_held = False


@dataclass(slots=True)
class FakeStore:
    """What opens models; `error` is raised in place of that."""

    leases: list[FakeLease] = field(default_factory=list)
    error: Exception | None = None

    def open(self, cache_dir: Path, key: str) -> OpenedModel:
        """`open_model`."""
        if self.error is not None:
            raise self.error
        self.leases.append(FakeLease())
        return OpenedModel(cache_dir / "models" / key / "skeleton", FACTS, self.leases[-1])
