"""The routes that run a model: one line each, because all of them are the same exchange.

Every answer says in `x-headrace-model-state` how the request found its model; a client may send
`x-headrace-deadline-ms`, after which it does not want an answer any more.
"""

import asyncio
import time
from functools import partial
from typing import Any

from fastapi import Request
from starlette.responses import Response

from headrace_server.api.dependencies import caller_of, runtime_of
from headrace_server.api.disconnect import unless_gone
from headrace_server.api.held_comment import held_comment
from headrace_server.api.routes import WireRoute, guarded_router
from headrace_server.api.schemas.chat import ChatCompletionRequest
from headrace_server.api.schemas.common import WireRequest
from headrace_server.api.schemas.completion import CompletionRequest
from headrace_server.api.schemas.messages import CountTokensRequest, MessagesRequest
from headrace_server.api.schemas.pooling import EmbeddingRequest, RerankRequest, ScoreRequest
from headrace_server.api.schemas.responses import ResponsesRequest
from headrace_server.api.schemas.tokens import DetokenizeRequest, TokenizeRequest
from headrace_server.api.sse import SseResponse
from headrace_server.domain import EngineRequest, ModelId, Operation, UnaryReply
from headrace_server.errors import EngineFault, InvalidRequest

DEADLINE_HEADER = "x-headrace-deadline-ms"
MAX_DEADLINE_MS = 86_400_000

router = guarded_router("inference", WireRoute)

# Documented once more than JSON: `stream: true` answers with server-sent events.
_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}


@router.post(Operation.CHAT, summary="Chat completion", responses=_STREAMS)
async def chat(request: Request, body: ChatCompletionRequest) -> Response:
    return await _serve(request, Operation.CHAT, body, stream=bool(body.stream))


@router.post(Operation.COMPLETION, summary="Text completion", responses=_STREAMS)
async def completion(request: Request, body: CompletionRequest) -> Response:
    return await _serve(request, Operation.COMPLETION, body, stream=bool(body.stream))


@router.post(Operation.RESPONSE, summary="Response (stateless)", responses=_STREAMS)
async def response(request: Request, body: ResponsesRequest) -> Response:
    return await _serve(request, Operation.RESPONSE, body, stream=bool(body.stream))


@router.post(Operation.MESSAGE, summary="Message (Anthropic)", responses=_STREAMS)
async def message(request: Request, body: MessagesRequest) -> Response:
    return await _serve(request, Operation.MESSAGE, body, stream=bool(body.stream))


@router.post(Operation.COUNT_TOKENS, summary="Count a message's tokens (Anthropic)")
async def count_tokens(request: Request, body: CountTokensRequest) -> Response:
    return await _serve(request, Operation.COUNT_TOKENS, body)


@router.post(Operation.EMBEDDING, summary="Embeddings")
async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
    return await _serve(request, Operation.EMBEDDING, body)


@router.post(Operation.RERANK, summary="Rerank documents")
async def rerank(request: Request, body: RerankRequest) -> Response:
    return await _serve(request, Operation.RERANK, body)


@router.post(Operation.SCORE, summary="Score pairs of texts")
async def score(request: Request, body: ScoreRequest) -> Response:
    return await _serve(request, Operation.SCORE, body)


@router.post(Operation.TOKENIZE, summary="Text to token ids")
async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    return await _serve(request, Operation.TOKENIZE, body)


@router.post(Operation.DETOKENIZE, summary="Token ids to text")
async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
    return await _serve(request, Operation.DETOKENIZE, body)


async def _serve(request: Request, operation: Operation, body: WireRequest, *, stream: bool = False) -> Response:
    runtime, model = runtime_of(request), ModelId(body.model)
    request.state.model_state = runtime.pool.status(model).state
    engine_request = EngineRequest(
        operation=operation,
        model=model,
        request_id=request.state.request_id,
        caller=caller_of(request),
        payload=body.payload(),
        stream=stream,
        deadline=_deadline(request),
    )
    work = partial(runtime.inference.submit, engine_request)
    if stream:
        return SseResponse(
            work,
            hold_seconds=runtime.header_hold_seconds,
            named_errors=operation is Operation.MESSAGE,
            comment=lambda: held_comment(runtime.pool.status(model)),
        )
    reply = await unless_gone(request.receive, work())
    if not isinstance(reply, UnaryReply):
        raise EngineFault("the engine answered with a stream where one document was asked for")
    return Response(reply.body, media_type="application/json")


def _deadline(request: Request) -> float | None:
    """When the client no longer wants an answer, on the event loop's clock; counted from the request's arrival."""
    given = request.headers.getlist(DEADLINE_HEADER)
    if not given:
        return None
    text = given[0]
    # `int` takes other digits and underscores too, and as many as there are.
    if len(given) > 1 or not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_DEADLINE_MS))):
        raise _bad_deadline()
    if not 1 <= int(text) <= MAX_DEADLINE_MS:
        raise _bad_deadline()
    age: float = time.perf_counter() - request.state.arrived
    return asyncio.get_running_loop().time() - age + int(text) / 1000


def _bad_deadline() -> InvalidRequest:
    return InvalidRequest(
        f"{DEADLINE_HEADER} must be a whole number of milliseconds, 1 to {MAX_DEADLINE_MS}", param=DEADLINE_HEADER
    )
