"""Errors on the wire: the one table from error class to status and type, and the one envelope.

A class that is not in the table takes its parent's row; a test fails where a class has none of its own.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from headrace_server.errors import (
    Contended,
    DeadlineExpired,
    DeadlineUnmeetable,
    Draining,
    EngineDied,
    EngineDown,
    EngineFault,
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    NoRoomForModel,
    NotAllowed,
    QuotaExceeded,
    RequestError,
    RequestQuarantined,
    RequestTooLarge,
    SlowRequest,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
    UnsupportedOperation,
)

MAX_ENVELOPE_BYTES = 2048
_MAX_MESSAGE_CHARS = 1000
_MAX_WORD_CHARS = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one class of error looks over HTTP."""

    status: int
    type: str


_INVALID = "invalid_request_error"

OUTCOMES: Mapping[type[RequestError], Outcome] = {
    InvalidRequest: Outcome(400, _INVALID),
    UnsupportedOperation: Outcome(400, _INVALID),
    Unauthenticated: Outcome(401, "authentication_error"),
    NotAllowed: Outcome(403, "permission_error"),
    ModelNotFound: Outcome(404, _INVALID),
    SlowRequest: Outcome(408, _INVALID),
    RequestTooLarge: Outcome(413, _INVALID),
    UnsupportedMediaType: Outcome(415, _INVALID),
    Contended: Outcome(429, "rate_limit_error"),
    DeadlineUnmeetable: Outcome(429, "rate_limit_error"),
    QuotaExceeded: Outcome(429, "rate_limit_error"),
    EngineFault: Outcome(500, "server_error"),
    RequestQuarantined: Outcome(500, "server_error"),
    Unavailable: Outcome(503, "server_error"),
    ModelLoading: Outcome(503, "server_error"),
    Draining: Outcome(503, "server_error"),
    NoRoomForModel: Outcome(503, "server_error"),
    EngineDown: Outcome(503, "server_error"),
    EngineDied: Outcome(503, "server_error"),
    DeadlineExpired: Outcome(504, "server_error"),
}
_UNKNOWN = Outcome(500, "server_error")


class ErrorBody(BaseModel):
    """What went wrong, for people (`message`) and programs (`code`)."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """Every error answer."""

    error: ErrorBody


def outcome(error: RequestError) -> Outcome:
    """The row of the nearest class in the table."""
    return next((OUTCOMES[kind] for kind in type(error).__mro__ if kind in OUTCOMES), _UNKNOWN)


def envelope(*, message: str, type: str, code: str | None, param: str | None = None) -> bytes:
    """The error document, UTF-8, at most MAX_ENVELOPE_BYTES."""
    limit = _MAX_MESSAGE_CHARS
    param, code = param and param[:_MAX_WORD_CHARS], code and code[:_MAX_WORD_CHARS]
    while True:
        shown = message if len(message) <= limit else message[: limit - 1] + "…"
        error = {"message": shown, "type": type, "param": param, "code": code}
        body = json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")
        if len(body) <= MAX_ENVELOPE_BYTES:
            return body
        limit //= 2


def error_document(error: RequestError) -> bytes:
    """The envelope of one of our errors."""
    return envelope(message=error.message, type=outcome(error).type, code=error.code, param=error.param)


def error_response(error: RequestError) -> Response:
    """The whole answer for one of our errors."""
    return Response(
        error_document(error),
        status_code=outcome(error).status,
        media_type="application/json",
        headers=dict(_headers(error)),
    )


def _headers(error: RequestError) -> Mapping[str, str]:
    match error:
        case Unauthenticated():
            return {"www-authenticate": "Bearer"}
        case DeadlineExpired() | DeadlineUnmeetable() | RequestQuarantined():
            return {"x-should-retry": "false"}
        case QuotaExceeded():
            return {**_retry_after(error), **_quota(error)}
        case _:
            return _retry_after(error)


def _retry_after(error: RequestError) -> Mapping[str, str]:
    seconds = error.retry_after_seconds
    if seconds is None:
        return {}
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


def _quota(error: QuotaExceeded) -> Mapping[str, str]:
    return {
        "x-ratelimit-limit-tokens": str(error.limit_tokens),
        "x-ratelimit-remaining-tokens": str(error.remaining_tokens),
        "x-ratelimit-reset-tokens": _duration(error.reset_seconds),
    }


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1.2s`, `6m0s`, `1h0m5s`; rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 10) / 10:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60}m{rest}s"


def validation_error(error: RequestValidationError) -> InvalidRequest:
    """Our error for a body, path or query that does not fit its model: the first problem, without the input."""
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"] if part not in ("body", "query", "path")]
    param = ".".join(location) or None
    message = str(problem["msg"]).removeprefix("Value error, ")
    return InvalidRequest(f"{param}: {message}" if param else message, param=param)


def http_error(error: HTTPException) -> Response:
    """The framework's own refusals (404, 405, ...) in our envelope, with their headers (`allow`)."""
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    body = envelope(message=str(error.detail), type=_INVALID, code=code)
    return Response(
        body, status_code=error.status_code, media_type="application/json", headers=dict(error.headers or {})
    )
