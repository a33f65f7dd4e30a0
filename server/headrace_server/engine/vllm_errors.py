"""vLLM's exceptions and error documents → our errors. One place, so that a new vLLM changes one file.

vLLM reports failures in two ways: it raises, or it returns an `ErrorResponse` whose `code` is an HTTP status.
"""

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeAlias

from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.v1.engine.exceptions import EngineDeadError

from headrace_server.engine.vllm_process_group import STOPPED
from headrace_server.errors import (
    EngineDied,
    EngineFault,
    InvalidRequest,
    ModelNotFound,
    RequestError,
    Unavailable,
    UnsupportedOperation,
)

logger = logging.getLogger(__name__)

Explain: TypeAlias = Callable[[Exception], RequestError]
"""Makes our error of whatever vLLM raised."""

_CONTEXT_LENGTH_WORDS = ("maximum context length", "max_model_len", "longer than the maximum model length")
_MESSAGE_LIMIT = 500


def translated(error: Exception) -> RequestError:
    """Our error for whatever a vLLM serving object raised; what the engine did wrong is logged with its cause."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, EngineDeadError):
        return EngineDied(STOPPED)
    ours = from_document(create_error_response(error))
    if isinstance(ours, EngineFault):
        logger.error("engine_fault", exc_info=error)
    return ours


def aborted() -> EngineFault:
    """For an answer that vLLM ended of its own accord, which it reports like a finished one."""
    return EngineFault("the engine stopped this request before it was finished", code="engine_aborted")


def explanation(is_dead: Callable[[], bool]) -> Explain:
    """`translated` for one engine. `is_dead` says whether it is gone: vLLM's errors do not always tell."""

    def explain(error: Exception) -> RequestError:
        ours = translated(error)
        return EngineDied(STOPPED) if isinstance(ours, EngineFault) and is_dead() else ours

    return explain


def from_document(document: ErrorResponse) -> RequestError:
    """Our error for an error document that vLLM would have sent."""
    status, message = document.error.code, _shorten(document.error.message)
    if status == HTTPStatus.NOT_IMPLEMENTED:
        return UnsupportedOperation(message)
    if status == HTTPStatus.NOT_FOUND:
        return ModelNotFound(message)
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        return Unavailable(message)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return EngineFault("the engine failed on this request")
    if any(words in message for words in _CONTEXT_LENGTH_WORDS):
        return InvalidRequest(message, code="context_length_exceeded", param=document.error.param)
    return InvalidRequest(message, param=document.error.param)


def _shorten(message: str) -> str:
    return message if len(message) <= _MESSAGE_LIMIT else message[: _MESSAGE_LIMIT - 1] + "…"
