"""The outermost layer: request id, bounds on headers and bodies, the access log, and the last resort for defects.

Pure ASGI, so that disconnects stay visible and a streamed token costs one function call. Everything that happens to
a request inside is seen here once: status, duration, who left.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace_server.api.error_mapping import error_response
from headrace_server.api.model_request import ModelRequest
from headrace_server.domain import RequestId
from headrace_server.errors import (
    ClientGone,
    EngineFault,
    InvalidRequest,
    RequestError,
    RequestTooLarge,
    SlowRequest,
)
from headrace_server.observability.logging import current_request_id

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("headrace_server.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HOST = re.compile(rb"[A-Za-z0-9._:\[\]-]{1,255}")
_STATUS_CLIENT_GONE = 499


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds on what a client may send."""

    max_body_bytes: int = 8 * 1024**2
    body_timeout_seconds: float = 30.0
    max_header_bytes: int = 16 * 1024
    max_headers: int = 64


class RequestBoundary:
    """Wraps the application; see the module."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: HttpLimits,
        on_done: Callable[[Scope, int, float], None],
        access_log: bool,
    ) -> None:
        self._app = app
        self._limits = limits
        self._on_done = on_done
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits)
        token = current_request_id.set(exchange.request_id)
        try:
            await exchange.run(self._app)
        finally:
            self._log(scope, exchange)
            current_request_id.reset(token)

    def _log(self, scope: Scope, exchange: "_Exchange") -> None:
        seconds = time.perf_counter() - exchange.began
        self._on_done(scope, exchange.status, seconds)
        if self._access_log:
            access_logger.info(
                "request_done",
                extra={
                    "method": scope["method"],
                    "path": scope["path"][:200],
                    "status": exchange.status,
                    "ms": round(seconds * 1000, 1),
                    **(exchange.model_request.log_fields() if exchange.model_request is not None else {}),
                },
            )


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: HttpLimits) -> None:
        self.began = time.perf_counter()
        self.status = _STATUS_CLIENT_GONE
        self._scope, self._receive, self._send = scope, receive, send
        self._limits = limits
        self._num_body_bytes = 0
        self._body_done = False
        self._answered = False
        headers = Headers(scope=scope)
        self.request_id = _request_id(headers.get("x-request-id"))
        self._declared_bytes = headers.get("content-length", "0")
        self._has_body = self._declared_bytes != "0" or "transfer-encoding" in headers
        scope.setdefault("state", {}).update(request_id=self.request_id, direct_send=send, arrived=self.began)

    @property
    def model_request(self) -> ModelRequest | None:
        """What the request asks of a model; None: nothing, or it did not come that far."""
        asked: ModelRequest | None = self._scope["state"].get("model_request")
        return asked

    async def run(self, app: ASGIApp) -> None:
        try:
            self._check_head()
            await app(self._scope, self.receive, self.send)
        except ClientGone:
            self.status = _STATUS_CLIENT_GONE
        except RequestError as error:
            await self._answer(error)
        except Exception:
            logger.exception("request_failed", extra={"path": self._scope["path"][:200]})
            await self._answer(EngineFault("internal error", code="internal_error"))

    def _check_head(self) -> None:
        headers: list[tuple[bytes, bytes]] = self._scope["headers"]
        num_bytes = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > self._limits.max_headers or num_bytes > self._limits.max_header_bytes:
            raise RequestTooLarge("the request's headers are too large", code="headers_too_large")
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) > 1 or any(not _HOST.fullmatch(host) for host in hosts):
            raise InvalidRequest("the Host header is not valid", code="bad_host")
        if self._declared_bytes.isdecimal() and int(self._declared_bytes[:20]) > self._limits.max_body_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """The client's next message; a body that is too large or too slow is refused."""
        if self._body_done:
            return await self._receive()
        remaining = self.began + self._limits.body_timeout_seconds - time.perf_counter()
        try:
            async with asyncio.timeout(max(remaining, 0)):
                message = await self._receive()
        except TimeoutError:
            raise SlowRequest("the request's body did not arrive in time") from None
        self._count(message)
        return message

    def _count(self, message: Message) -> None:
        if message["type"] != "http.request":
            self._body_done = True
            return
        self._num_body_bytes += len(message.get("body", b""))
        self._body_done = not message.get("more_body", False)
        if self._num_body_bytes > self._limits.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> RequestTooLarge:
        return RequestTooLarge(f"the request's body is larger than {self._limits.max_body_bytes} bytes")

    async def send(self, message: Message) -> None:
        """Pass an answer's message on, with the request id in its headers and what is to be told of a model's request.

        An answer to a request whose body was not read to its end closes the connection: the rest is not waited for.
        """
        if message["type"] == "http.response.start":
            self._answered = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            if (asked := self.model_request) is not None:
                headers.update(asked.headers())
            if self._has_body and not self._body_done:
                headers["connection"] = "close"
        await self._send(message)

    async def _answer(self, error: RequestError) -> None:
        if self._answered:
            raise error  # the server closes the connection, so that a cut answer is seen as cut
        await error_response(error)(self._scope, self._receive, self.send)


def _request_id(given: str | None) -> RequestId:
    if given is not None and _REQUEST_ID.fullmatch(given):
        return RequestId(given)
    return RequestId(secrets.token_hex(16))
