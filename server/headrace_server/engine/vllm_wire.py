"""Our validated payload → vLLM's request classes, which hold what vLLM needs beside the client's fields."""

from collections.abc import Callable
from typing import TypeAlias

from pydantic import BaseModel, ValidationError
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingChatRequest, EmbeddingCompletionRequest
from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreTextRequest
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)

from headrace_server.domain import EngineRequest, JsonObject, Operation
from headrace_server.errors import InvalidRequest

_VALIDATION_SHOWN = 3
_ID_PREFIX = {Operation.RESPONSE: "resp_"}  # vLLM makes the other ids from the request id itself

RequestClass: TypeAlias = Callable[[JsonObject], type[BaseModel]]


def _always(request_class: type[BaseModel]) -> RequestClass:
    return lambda _payload: request_class


def _by_messages(with_messages: type[BaseModel], without: type[BaseModel]) -> RequestClass:
    return lambda payload: with_messages if "messages" in payload else without


_CLASSES: dict[Operation, RequestClass] = {
    Operation.CHAT: _always(ChatCompletionRequest),
    Operation.COMPLETION: _always(CompletionRequest),
    Operation.RESPONSE: _always(ResponsesRequest),
    Operation.MESSAGE: _always(AnthropicMessagesRequest),
    Operation.COUNT_TOKENS: _always(AnthropicCountTokensRequest),
    Operation.EMBEDDING: _by_messages(EmbeddingChatRequest, EmbeddingCompletionRequest),
    Operation.RERANK: _always(RerankRequest),
    Operation.SCORE: _always(ScoreTextRequest),
    Operation.TOKENIZE: _by_messages(TokenizeChatRequest, TokenizeCompletionRequest),
    Operation.DETOKENIZE: _always(DetokenizeRequest),
}


def wire_request(request: EngineRequest) -> BaseModel:
    """vLLM's form of a request.

    Raises:
        InvalidRequest: vLLM's own rules refuse it; the first three problems are told.
    """
    request_class = _CLASSES[request.operation](request.payload)
    payload = dict(request.payload)
    if "request_id" in request_class.model_fields:
        payload["request_id"] = _ID_PREFIX.get(request.operation, "") + request.request_id
    try:
        return request_class.model_validate(payload)
    except ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: ValidationError) -> InvalidRequest:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    shown = "; ".join(f"{_dotted(p['loc'])}: {p['msg']}" for p in problems[:_VALIDATION_SHOWN])
    return InvalidRequest(shown, param=_dotted(problems[0]["loc"]) or None)


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)
