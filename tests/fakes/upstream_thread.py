"""A stand-in for an upstream server in a thread of its own, for tests that wait for processes."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fakes.upstream_server import FakeUpstream, Handler, serving

STARTING_SECONDS = 10.0


@contextmanager
def running_upstream(handler: Handler) -> Iterator[str]:
    """Its address, until the end."""
    upstream, has_started = FakeUpstream(handler, models=handler), threading.Event()
    found: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async with serving(upstream) as url:
            may_stop = asyncio.Event()
            found.append((url, asyncio.get_running_loop(), may_stop))
            has_started.set()
            await may_stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert has_started.wait(STARTING_SECONDS), "the stand-in does not start"
    url, loop, may_stop = found[0]
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(may_stop.set)
        thread.join()
