"""The synthetic engine's places: so many requests run, the others wait in the order in which they came.

The invariant: a ticket is running, waiting or neither, never two of them; free places and waiting tickets never
exist at the same time. `leave` may be called in any state, any number of times, and from another task than the one
that waits. Touched on the event loop only.
"""

import asyncio

from headrace_server.errors import EngineDied


class Ticket:
    """One request's claim to a place; equal to itself only."""

    __slots__ = ()


class Slots:
    """Places for `num_places` requests."""

    def __init__(self, num_places: int) -> None:
        self._num_places = num_places
        self._running: set[Ticket] = set()
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._closed = False

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def enter(self, ticket: Ticket) -> None:
        """Wait for a place. Returns without one if the ticket was withdrawn meanwhile; see `holds`.

        Raises:
            EngineDied: the engine closed.
        """
        if self._closed:
            raise _closed()
        if len(self._running) < self._num_places:
            self._running.add(ticket)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = turn
        try:
            await turn
        except asyncio.CancelledError:
            self.leave(ticket)
            raise

    def holds(self, ticket: Ticket) -> bool:
        """Whether the ticket has a place.

        Raises:
            EngineDied: it lost its place because the engine closed.
        """
        if ticket in self._running:
            return True
        if self._closed:
            raise _closed()
        return False

    def leave(self, ticket: Ticket) -> None:
        """Give up the place, or the wish for one."""
        turn = self._waiting.pop(ticket, None)
        if turn is not None and not turn.done():
            turn.set_result(None)
        if ticket in self._running:
            self._running.remove(ticket)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._num_places:
            ticket = next(iter(self._waiting))
            turn = self._waiting.pop(ticket)
            if not turn.done():  # done: cancelled, and its task has not run since
                self._running.add(ticket)
                turn.set_result(None)

    def close(self) -> None:
        """Take every place away; those who wait are told that the engine is down."""
        self._closed = True
        self._running.clear()
        for turn in self._waiting.values():
            if not turn.done():
                turn.set_exception(_closed())
        self._waiting.clear()

    def check_integrity(self) -> None:
        """Raise AssertionError if the invariant is broken."""
        if self._running.intersection(self._waiting):
            raise AssertionError("a ticket both runs and waits")
        if len(self._running) > self._num_places:
            raise AssertionError("more run than there are places")
        if self._waiting and len(self._running) < self._num_places:
            raise AssertionError("a ticket waits beside a free place")


def _closed() -> EngineDied:
    return EngineDied("the engine of this model has stopped")
