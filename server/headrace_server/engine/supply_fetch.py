"""One fetch as the thread that reads its events sees it: started, every event handed on, ended and waited for.

Knows nothing of models, leases and queues. However a reading ends, the child has been ended and waited for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from headrace_models.errors import FetchFailed
from headrace_models.fetch.events import FetchEvent


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


def read_fetch(fetch: Fetch, *, on_start: Callable[[int | None], None], on_event: Callable[[FetchEvent], None]) -> None:
    """Run a fetch to its end, or until it is stopped. Blocks; raises FetchFailed when it cannot be started.

    Starting is part of it, because making a process of one with many mappings takes a while.
    """
    try:
        fetch.start()
    except OSError as error:
        raise FetchFailed(f"the fetching process cannot be started: {error.strerror or error}") from error
    on_start(fetch.pid)
    with events_of(fetch) as events:
        for event in events:
            on_event(event)
