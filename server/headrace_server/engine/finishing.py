"""Ends that are not left half done: what stops an engine goes on to its end, whoever cancels the task that does it.

A cancellation is not lost: it comes once the work is over. So the work has to end by itself.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def finished(work: Awaitable[T]) -> T:
    """Await `work` to its end.

    Raises:
        asyncio.CancelledError: the caller was cancelled meanwhile; whatever came of the work is dropped.
    """
    task = asyncio.ensure_future(work)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            is_cancelled = True
    if not is_cancelled:
        return task.result()
    if not task.cancelled():
        task.exception()  # else asyncio complains that nobody has looked
    raise asyncio.CancelledError


async def ended(*futures: "asyncio.Future[T]") -> None:
    """Cancel them all and wait until they are over, however they end."""
    for future in futures:
        future.cancel()
    await finished(asyncio.gather(*futures, return_exceptions=True))
