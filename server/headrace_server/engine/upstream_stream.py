"""A streamed answer of an upstream server, passed on as it comes.

Owns the response and closes it exactly once: at the end, at a failure, or when the receiver closes the stream, also
while another task reads from it. Closing drops the connection, which is how the upstream learns that nobody listens.
An answer that breaks off, or reports an error, ends in an exception and never in `[DONE]`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx

from headrace_server.domain import Operation
from headrace_server.engine.upstream_frames import FrameBuffer, failure_in, is_comment, is_terminal
from headrace_server.engine.upstream_usage import UpstreamAccount
from headrace_server.errors import EngineDown, EngineFault

# How long a complete answer's response may take to end; if it does, its connection can be used again.
_DRAIN_SECONDS = 0.5


class UpstreamStream:
    """See `domain.EventStream`. `on_end` is called once, as soon as the stream is over; `account` sees what is passed
    on."""

    def __init__(
        self, response: httpx.Response, operation: Operation, account: UpstreamAccount, on_end: Callable[[], None]
    ) -> None:
        self._response = response
        self._chunks = response.aiter_raw()
        self._operation = operation
        self._account = account
        self._on_end = on_end
        self._buffer = FrameBuffer()
        self._failure: EngineFault | None = None
        self._is_complete = False
        self._is_over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        try:
            return await self._next()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Drop the connection. Safe at any time, from any task, any number of times."""
        if not self._is_over:
            self._is_over = True
            self._on_end()
            await self._response.aclose()

    async def _next(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        while not (block := await self._passable()):
            pass
        failure = failure_in(block)
        if failure is None:
            self._is_complete = self._is_complete or is_terminal(self._operation, block)
            return block
        if not failure.before:
            raise failure.error
        self._failure = failure.error
        return failure.before

    async def _passable(self) -> bytes:
        """Frames for the client; empty where these were not."""
        block = await self._block()
        return b"" if is_comment(block) else self._account.passed(block)

    async def _block(self) -> bytes:
        chunk = await self._chunk()
        if chunk is not None:
            return self._buffer.feed(chunk)
        rest = self._buffer.rest()
        if rest or self._is_complete:
            return self._last(rest)
        raise EngineDown("the upstream server broke the answer off")

    def _last(self, rest: bytes) -> bytes:
        if not rest:
            raise StopAsyncIteration
        self._is_complete = True
        return rest

    async def _chunk(self) -> bytes | None:
        """The next bytes, or None when the response is over."""
        try:
            async with asyncio.timeout(_DRAIN_SECONDS if self._is_complete else None):
                return await anext(self._chunks, None)
        except TimeoutError:
            return None
        except httpx.HTTPError as error:
            if self._is_over:  # closed by another task
                raise StopAsyncIteration from None
            if self._is_complete:
                return None
            raise EngineDown("the upstream server broke the answer off") from error
