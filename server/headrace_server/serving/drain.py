"""The end of a server without a request lost: no new ones, time for those that were admitted, a clear end for the rest.

Keeps the list of every request that is open. Draining begins once and is never taken back.
"""

import asyncio
from typing import Protocol

from headrace_server.errors import Draining, RequestError

_RETRY_SECONDS = 5.0
# A request that was told to end has only its error event left to send; one whose client does not read never sends it.
_LAST_WORDS_SECONDS = 5.0


class OpenRequest(Protocol):
    """A request that was admitted and is not over."""

    def cut(self, error: RequestError) -> None:
        """End it now, with this error. Does nothing to one that is ending anyway."""


class Drain:
    """See the module.

    Attributes:
        is_draining: nothing is admitted any more.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self._open: set[OpenRequest] = set()
        self._num_cut = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._is_hastened = asyncio.Event()

    @property
    def num_open(self) -> int:
        """Requests that were admitted and are not over."""
        return len(self._open)

    def enter(self, request: OpenRequest) -> None:
        """Admit a request.

        Raises:
            Draining: no more are.
        """
        if self.is_draining:
            raise _going()
        self._open.add(request)
        self._is_idle.clear()

    def leave(self, request: OpenRequest) -> None:
        """A request is over; safe to say twice."""
        self._open.discard(request)
        if not self._open:
            self._is_idle.set()

    def begin(self) -> None:
        """Admit no more."""
        self.is_draining = True

    async def run(self, seconds: float) -> int:
        """Begin, wait until every open request is over, and cut those that are not after so many seconds. Returns how
        many were cut. Several callers may wait; the earliest deadline counts."""
        self.begin()
        deadline = asyncio.get_running_loop().call_later(seconds, self.hasten)
        try:
            await self._until_over()
        finally:
            deadline.cancel()
        return self._num_cut

    async def _until_over(self) -> None:
        idle, hastened = (asyncio.ensure_future(event.wait()) for event in (self._is_idle, self._is_hastened))
        try:
            await asyncio.wait({idle, hastened}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({idle}, timeout=_LAST_WORDS_SECONDS)
        finally:
            idle.cancel()
            hastened.cancel()
            await asyncio.gather(idle, hastened, return_exceptions=True)

    def hasten(self) -> None:
        """As if the deadline had passed."""
        if self._is_hastened.is_set():
            return
        self.begin()
        self._is_hastened.set()
        for request in list(self._open):
            self._num_cut += 1
            request.cut(_going())


def _going() -> Draining:
    return Draining("the server is shutting down", retry_after_seconds=_RETRY_SECONDS)
