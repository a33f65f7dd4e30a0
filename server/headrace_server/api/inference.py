"""The routes that run a model: one line each, because all of them are the same exchange.

For whom, how urgently and until when a request is served, `api.request_class` reads from its headers and its body.
Every answer says in `x-headrace-model-state` how the request found its model, and in `x-headrace-queue-ms` for how long
it waited for its turn, as far as that was known when the headers went out.
"""

from typing import Any

from fastapi import Request
from starlette.responses import Response

from headrace_server.api.dependencies import caller_of, runtime_of
from headrace_server.api.disconnect import unless_gone
from headrace_server.api.model_request import ModelRequest
from headrace_server.api.request_class import terms_of
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
from headrace_server.errors import EngineFault

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
    terms = terms_of(request, body, caller_of(request))
    engine_request = EngineRequest(
        operation=operation,
        model=model,
        request_id=request.state.request_id,
        caller=terms.caller,
        payload=body.payload(),
        stream=stream,
        deadline=terms.deadline,
        service_class=terms.service_class,
        num_bytes=len(await request.body()),
        cache_salt=terms.cache_salt,
    )
    asked = request.state.model_request = ModelRequest(runtime, engine_request, runtime.pool.status(model).state)
    if stream:
        return SseResponse(
            asked.work,
            hold_seconds=runtime.header_hold_seconds,
            named_errors=operation is Operation.MESSAGE,
            comment=asked.comment,
        )
    reply = await unless_gone(request.receive, asked.work())
    if not isinstance(reply, UnaryReply):
        raise EngineFault("the engine answered with a stream where one document was asked for")
    return Response(reply.body, media_type="application/json")
