"""Fetches whose every event the test sends, in place of child processes; a store that has what the test says; threads
that run when the test says."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from headrace_models.errors import ModelNotFound
from headrace_models.fetch.events import Completed, FetchEvent, GroupProgress, Indexed, Progress, Started
from headrace_models.fetch.request import FetchRequest
from headrace_models.model_facts import ModelFacts
from headrace_models.task import Task
from headrace_models.trust import Trust
from headrace_server.domain import ModelId, WeightsStatus
from headrace_server.engine.delivery import Order
from headrace_server.engine.supply_store import OpenedModel

FACTS = ModelFacts("LlamaForCausalLM", Task.GENERATE, 100, 50, "bfloat16", 256, 4, 6144, 128, 2, 32)
HF = "hf://org/name"
KEY = "name-0123456789ab"

P = ParamSpec("P")
T = TypeVar("T")


def order(model: str, reference: str = HF) -> Order:
    """An order as the catalog gives it."""
    return Order(ModelId(model), FetchRequest(reference, Path("/cache")))


def indexed(key: str = KEY, *, trust: Trust = Trust.CHUNK) -> Indexed:
    """A model of 100 bytes has been found."""
    return Indexed(key, "r1", trust, 100)


def progress(present_bytes: int, *, rate: float = 10.0) -> Progress:
    """So many of its 100 bytes are here, all of them in one group."""
    eta = (100 - present_bytes) / rate if rate else None
    return Progress(present_bytes, 100, present_bytes, rate, eta, (GroupProgress("layer.0", present_bytes, 100),))


def completed(key: str = KEY, *, trust: Trust = Trust.CHUNK) -> Completed:
    """All of it is here."""
    return Completed(key, trust, fetched_bytes=100, seconds=2.5)


class FakeFetch:
    """A `Fetch`. `tell` what happens; nothing more comes after `end`, or once it was stopped."""

    def __init__(self, request: FetchRequest) -> None:
        self.request = request
        self.pid: int | None = None
        self.is_stopped = False
        self.is_read_to_its_end = False
        self.opened = asyncio.Event()
        self.may_be_read = threading.Event()
        self.may_be_read.set()
        self.start_error: OSError | None = None
        self._events: queue.Queue[FetchEvent | Exception | None] = queue.Queue()
        self.tell(Started(request.reference, 4321))

    @property
    def is_quiet(self) -> bool:
        """Whether the reader has taken everything that was told, and waits for more."""
        return self._events.unfinished_tasks == 0

    def start(self) -> None:
        if self.start_error is not None:
            self.is_read_to_its_end = True
            raise self.start_error
        self.pid = 4321

    def events(self) -> Iterator[FetchEvent]:
        while (event := self._next()) is not None and not self.is_stopped:
            if isinstance(event, Exception):
                self.is_read_to_its_end = True
                raise event
            yield event
            self._events.task_done()
        self.is_read_to_its_end = True

    def _next(self) -> FetchEvent | Exception | None:
        event = self._events.get()
        self.may_be_read.wait()
        return event

    def stop(self) -> None:
        self.is_stopped = True
        self._events.put(None)

    def tell(self, *events: FetchEvent | Exception) -> None:
        """These happen next; an exception is a defect in the reading of events."""
        for event in events:
            self._events.put(event)

    def wait_until_read(self) -> None:
        """Return once all that was told has been read. Blocks; not for the event loop's thread."""
        while not (self.is_quiet or self.is_read_to_its_end):
            time.sleep(0.0001)

    def end(self) -> None:
        """The child is gone."""
        self._events.put(None)


class FakeFetches:
    """What opens fetches. `fetches[reference]` is the latest one of a reference, or its first, not opened yet.

    Attributes:
        opened: all that were opened, in that order.
        num_overlaps: how many were opened while another one had not been read to its end.
    """

    def __init__(self, *references: str) -> None:
        self._latest: dict[str, FakeFetch] = {}
        self.opened: list[FakeFetch] = []
        self.num_overlaps = 0
        for reference in references:
            self.prepare(reference)

    def __getitem__(self, reference: str) -> FakeFetch:
        return self._latest[reference]

    @property
    def references(self) -> list[str]:
        """What was fetched, in that order."""
        return [fetch.request.reference for fetch in self.opened]

    def open(self, request: FetchRequest) -> FakeFetch:
        """`open_fetch`."""
        fetch = self._latest[request.reference]
        if fetch in self.opened:
            fetch = self.prepare(request.reference)
        self.num_overlaps += any(not other.is_read_to_its_end for other in self.opened)
        self.opened.append(fetch)
        fetch.opened.set()
        return fetch

    def prepare(self, reference: str, kind: type[FakeFetch] = FakeFetch) -> FakeFetch:
        """The fetch that comes next for this reference."""
        fetch = self._latest[reference] = kind(FetchRequest(reference, Path("/cache")))
        return fetch


@dataclass(slots=True)
class FakeLease:
    """A lease that tells whether it is held, and how often it was given back."""

    key: str
    num_closed: int = 0

    @property
    def is_held(self) -> bool:
        return self.num_closed == 0

    def close(self) -> None:
        self.num_closed += 1


@dataclass(slots=True)
class FakeStore:
    """What opens models; `error` is raised in place of that.

    Attributes:
        parts: keys of which a part is missing; everything else that is asked for is whole.
        gone: keys that the store does not have.
        on_open: called in the thread before anything else.
    """

    leases: list[FakeLease] = field(default_factory=list)
    error: Exception | None = None
    parts: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    on_open: Callable[[str], None] = lambda _key: None

    @property
    def num_held(self) -> int:
        """How many leases are held."""
        return sum(lease.is_held for lease in self.leases)

    def open(self, cache_dir: Path, key: str) -> OpenedModel:
        """`open_model`."""
        self.on_open(key)
        if self.error is not None:
            raise self.error
        if key in self.gone:
            raise ModelNotFound(f"no model {key!r} in the model cache")
        self.leases.append(FakeLease(key))
        present = 50 if key in self.parts else 100
        weights = WeightsStatus(key, "r1", Trust.CHUNK, present, 100, is_complete=present == 100)
        return OpenedModel(cache_dir / "models" / key / "skeleton", FACTS, weights, self.leases[-1])


class FakeThreads(Executor):
    """Work runs when and where the test says; a `FakeFetch` is read in a real thread, in step with the test."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._readers: list[tuple[threading.Thread, FakeFetch]] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        work = partial(_work, future, partial(fn, *args, **kwargs))
        if args and isinstance(args[0], FakeFetch):
            args[0].may_be_read.clear()
            self._readers.append((threading.Thread(target=work), args[0]))
        else:
            self._waiting.append(work)
        return future

    def run_one(self, number: int = 0) -> None:
        """Do one piece of the work that waits, if there is any; 0: what has waited longest."""
        if self._waiting:
            self._waiting.pop(number)()

    def catch_up(self) -> None:
        """Let every reader hand on what was told, and end if it is over. Nothing is read at any other time."""
        for thread, fetch in self._readers:
            if thread.ident is None:
                thread.start()
            fetch.may_be_read.set()
            while thread.is_alive() and not fetch.is_quiet:
                time.sleep(0.0001)
            fetch.may_be_read.clear()
        self._readers = [(thread, fetch) for thread, fetch in self._readers if thread.is_alive()]

    @property
    def is_idle(self) -> bool:
        """Whether no work waits."""
        return not self._waiting


def _work(future: "Future[T]", function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001
        future.set_exception(error)
