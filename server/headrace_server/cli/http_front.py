"""uvicorn as this command runs it: in our loop, without signal handlers of its own, stopped at once when it is told to.

uvicorn looks ten times a second whether it should exit; here it is woken, so that Ctrl-C does not wait for that.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

_TICK_SECONDS = 1.0
_TICKS_PER_SECOND = 10  # of uvicorn's own loop; it renews the date header on every tenth


class HttpFront(uvicorn.Server):
    """A server. `on_shutdown` is called before connections are waited for: an answer that would go on for as long as
    the server does has to end by itself."""

    def __init__(self, config: uvicorn.Config, *, on_shutdown: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._on_shutdown = on_shutdown
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Take no more connections, let the answers under way come to their end, return from `serve`."""
        self.should_exit = True
        self._stopping.set()

    def force(self) -> None:
        """Stop without waiting for anything."""
        self.force_exit = True
        self.stop()

    async def main_loop(self) -> None:
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += _TICKS_PER_SECOND
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_shutdown()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
