"""An upstream server's refusals and failures as this project's errors.

What the upstream says about the request goes on to the client, bounded; what it says about itself (credentials,
addresses, tracebacks) does not. Bodies come in three forms: OpenAI's and Anthropic's envelope `{"error": {...}}`,
vLLM's older `{"message": ...}` and FastAPI's `{"detail": ...}`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace_server.errors import (
    Contended,
    EngineDown,
    EngineFault,
    InvalidRequest,
    ModelNotFound,
    RequestError,
    RequestTooLarge,
    UnsupportedOperation,
)

_MAX_MESSAGE_CHARS = 500
_MAX_NAME_CHARS = 100


@dataclass(frozen=True, slots=True)
class Complaint:
    """What an error document says; empty strings and None where it says nothing."""

    message: str = ""
    code: str | None = None
    param: str | None = None


def complaint_in(body: bytes) -> Complaint:
    """Read an error document; one that is not understood says nothing."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Complaint()
    if not isinstance(document, dict):
        return Complaint()
    found = document.get("error", document.get("detail", document))
    return _complaint(found)


def _complaint(found: object) -> Complaint:
    match found:
        case str():
            return Complaint(found[:_MAX_MESSAGE_CHARS])
        case [dict() as first, *_]:  # FastAPI's list of problems
            place = ".".join(map(str, first.get("loc", ())))
            return Complaint(f"{place}: {first.get('msg', '')}"[:_MAX_MESSAGE_CHARS], param=place[:_MAX_NAME_CHARS])
        case dict():
            message = _text(found, "message", _MAX_MESSAGE_CHARS) or ""
            return Complaint(message, _text(found, "code", _MAX_NAME_CHARS), _text(found, "param", _MAX_NAME_CHARS))
        case _:
            return Complaint()


def _text(document: dict[str, Any], name: str, max_chars: int) -> str | None:
    value = document.get(name)
    return value[:max_chars] if isinstance(value, str) and value else None


def from_status(status: int, headers: Mapping[str, str], body: bytes) -> RequestError:
    """The error that stands for an HTTP answer that is not a success. `body` may be cut short."""
    complaint = complaint_in(body)
    match status:
        case 400 | 422:
            return _invalid(complaint)
        case 401 | 403:
            return EngineFault("the upstream server refused our credentials")
        case 404 | 405 | 501:
            return _missing(complaint if complaint.message else Complaint(body[:100].decode(errors="replace")))
        case 413:
            return RequestTooLarge("the upstream server finds the request too large")
        case 429:
            return Contended("the upstream server is busy", retry_after_seconds=retry_after_seconds(headers))
        case 503:
            return _unavailable(complaint, headers)
        case _:
            return EngineFault(f"the upstream server failed with status {status}")


def _invalid(complaint: Complaint) -> InvalidRequest:
    message = complaint.message or "the upstream server refused the request"
    return InvalidRequest(message, code=complaint.code, param=complaint.param)


def _missing(complaint: Complaint) -> InvalidRequest | ModelNotFound:
    said = f"{complaint.message} {complaint.code} {complaint.param}".lower()
    if "model" in said:
        return ModelNotFound("the upstream server does not have this model", param="model")
    return UnsupportedOperation("the upstream server does not serve this operation")


def _unavailable(complaint: Complaint, headers: Mapping[str, str]) -> EngineDown:
    message = complaint.message or "the upstream server has no capacity now"
    return EngineDown(message, code=complaint.code, retry_after_seconds=retry_after_seconds(headers))


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """`retry-after-ms`, else `retry-after` in seconds; dates and nonsense are None."""
    milliseconds = _number(headers.get("retry-after-ms"))
    return milliseconds / 1000 if milliseconds is not None else _number(headers.get("retry-after"))


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def from_error_event(data: object) -> EngineFault | None:
    """The failure that the data of a server-sent event reports, or None if it reports none."""
    if not isinstance(data, dict):
        return None
    if data.get("type") == "error" and "error" not in data:  # the Responses API
        complaint = _complaint(data)
    elif data.get("error"):
        complaint = _complaint(data["error"])
    else:
        return None
    return EngineFault(complaint.message or "the upstream server failed on this request", code=complaint.code)
