"""Server-sent events: headers wait for the first event, then every event goes out as it comes.

Everything up to the first event (lease, tokenising, admission, prefill) happens under one roof: the client may leave
meanwhile, and while nothing has been sent a failure still becomes an error status. Once headers are out (the first
event came, or the hold time passed and keep-alive comments took over) a failure becomes an error event, and no `[DONE]`
follows.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headrace_server.api.disconnect import unless_gone
from headrace_server.api.error_mapping import error_document
from headrace_server.domain import EventStream, Reply, StreamReply
from headrace_server.errors import EngineFault, RequestError

logger = logging.getLogger(__name__)

KEEP_ALIVE = b": keep-alive\n\n"

Work: TypeAlias = Callable[[], Awaitable[Reply]]
Comment: TypeAlias = Callable[[], bytes]
"""What to say while there is nothing to send: one comment frame."""


def keep_alive() -> bytes:
    """The comment where nothing is known."""
    return KEEP_ALIVE


def comment_frame(text: str) -> bytes:
    """A comment that says something; what is not printable ASCII is replaced, so that it stays one line."""
    shown = "".join(c if " " <= c <= "~" else "?" for c in text)
    return b": " + shown.encode("ascii") + b"\n\n"


class SseResponse(Response):
    """Does `work`, which answers with a stream, sends its events to the client and closes it, however it ends.

    `named_errors`: the error event has a name and a type, as Anthropic's clients need to see it. `comment` is asked
    each time the client is told that there is nothing yet.
    """

    media_type = "text/event-stream"

    def __init__(
        self, work: Work, *, hold_seconds: float, named_errors: bool = False, comment: Comment = keep_alive
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._work = work
        self._hold_seconds = hold_seconds
        self._named_errors = named_errors
        self._comment = comment
        self._events: EventStream | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The layers above look at an answer's head only; its pieces need not pass through each of them.
        direct_send = scope.get("state", {}).get("direct_send", send)
        try:
            await unless_gone(receive, self._stream(send, direct_send))
        finally:
            if self._events is not None:
                await self._events.aclose()

    async def _stream(self, send: Send, direct_send: Send) -> None:
        first = asyncio.ensure_future(self._first())
        try:
            if not await self._keep_alive_until(first, send):
                first.result()  # raises where the stream failed: nothing has been sent, so the failure has a status
                await self._send_headers(send)
            await self._relay(first, direct_send)
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _first(self) -> bytes:
        """The first event; empty where there is none."""
        reply = await self._work()
        if not isinstance(reply, StreamReply):
            raise EngineFault("the engine answered in one piece where a stream was asked for")
        self._events = reply.events
        return await anext(aiter(reply.events), b"")

    async def _keep_alive_until(self, first: "asyncio.Future[bytes]", send: Send) -> bool:
        """Wait for the first event, with comments where it takes too long. Returns whether headers are out."""
        committed = False
        while not (await asyncio.wait({first}, timeout=self._hold_seconds))[0]:
            if not committed:
                await self._send_headers(send)
                committed = True
            await _send_body(send, self._comment())
        return committed

    async def _relay(self, first: "asyncio.Future[bytes]", send: Send) -> None:
        """Send every event; a failure is the last."""
        try:
            await _send_body(send, await first)
            if self._events is not None:
                async for event in self._events:
                    await _send_body(send, event)
        except RequestError as error:
            await _send_body(send, self._error_event(error))
        except Exception:
            logger.exception("stream_failed")
            await _send_body(send, self._error_event(EngineFault("internal error", code="internal_error")))

    def _error_event(self, error: RequestError) -> bytes:
        document = error_document(error)
        if not self._named_errors:
            return b"data: " + document + b"\n\n"
        return b'event: error\ndata: {"type": "error", ' + document[1:] + b"\n\n"

    async def _send_headers(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


async def _send_body(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
