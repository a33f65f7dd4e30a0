"""What changes about models, told to whoever listens: states one by one, progress at most four times a second.

A listener that does not keep up is told the newest, not everything: what it has not read of one model's progress is
replaced, and of more than MAX_UNREAD changes only the last of each model stay. Nothing here waits, so a slow listener
slows nobody down. All of it is used on one event loop.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

from headrace_server.domain import ModelId, ModelStatus

TICK_SECONDS = 0.25
MAX_UNREAD = 64


class Mailbox:
    """What one listener has not been told yet, oldest first. Pure."""

    def __init__(self) -> None:
        self._unread: list[ModelStatus] = []

    def put(self, status: ModelStatus) -> None:
        """Keep a change; the one before it in the same state of the same model is forgotten."""
        last = next((n for n in reversed(range(len(self._unread))) if self._unread[n].id == status.id), None)
        if last is not None and _state(self._unread[last]) == _state(status):
            self._unread[last] = status
            return
        self._unread.append(status)
        if len(self._unread) > MAX_UNREAD:
            newest = {unread.id: unread for unread in self._unread}
            self._unread = list(newest.values())

    def take(self) -> tuple[ModelStatus, ...]:
        """Everything, once."""
        unread, self._unread = self._unread, []
        return tuple(unread)


class Listener:
    """One who listens; iterate with `next` until it gives None, and `close` at the end, whatever happened."""

    def __init__(self, current: Iterable[ModelStatus], on_close: Callable[["Listener"], None]) -> None:
        self._mailbox = Mailbox()
        self._woken = asyncio.Event()
        self._is_over = False
        self._on_close = on_close
        for status in current:
            self.tell(status)

    async def next(self) -> tuple[ModelStatus, ...] | None:
        """The changes since the last call, at least one; None: there will be no more."""
        await self._woken.wait()
        changes = self._mailbox.take()
        if not changes:
            return None
        if not self._is_over:
            self._woken.clear()
        return changes

    def tell(self, status: ModelStatus) -> None:
        """A change."""
        self._mailbox.put(status)
        self._woken.set()

    def finish(self) -> None:
        """Nothing comes any more; what has not been read may still be."""
        self._is_over = True
        self._woken.set()

    def close(self) -> None:
        """Listen no longer; safe to call twice."""
        self.finish()
        self._on_close(self)


class ModelFeed:
    """Where changes are published and listened to."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._listeners: set[Listener] = set()
        self._told: dict[ModelId, tuple[object, float]] = {}
        self._is_closed = False

    @property
    def num_listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    def publish(self, status: ModelStatus) -> None:
        """A model has changed. Every listener hears of another state; of mere progress, unless the last time was less
        than TICK_SECONDS ago."""
        now, state = self._clock(), _state(status)
        last_state, told_at = self._told.get(status.id, (None, 0.0))
        if state == last_state and now - told_at < TICK_SECONDS:
            return
        self._told[status.id] = state, now
        for listener in self._listeners:
            listener.tell(status)

    def listen(self, current: Iterable[ModelStatus]) -> Listener:
        """Hear `current` first, then every change."""
        listener = Listener(current, self._listeners.discard)
        if self._is_closed:
            listener.finish()
        else:
            self._listeners.add(listener)
        return listener

    def close(self) -> None:
        """The server is going away: every listener comes to its end, later ones at once."""
        self._is_closed = True
        for listener in self._listeners:
            listener.finish()


def _state(status: ModelStatus) -> tuple[object, ...]:
    """What is worth an event of its own."""
    weights = status.weights
    return status.state, status.detail, status.is_pinned, weights and (weights.is_complete, weights.problem)
