"""vLLM's serving objects as a table of operations: JSON in, a finished document or server-sent events out.

vLLM builds the objects itself (`init_app_state`), because their constructors change with every release; this module
only knows which request class and which method serve an operation, and turns vLLM's three ways of answering
(response model, async generator, error document) into `domain.Reply` or an exception.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError
from starlette.datastructures import State
from starlette.responses import Response
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingChatRequest, EmbeddingCompletionRequest
from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreTextRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)

from headrace_server.domain import EngineRequest, JsonObject, Operation, Reply, StreamReply, UnaryReply
from headrace_server.engine.vllm_errors import STOPPED, from_document, translated
from headrace_server.errors import EngineDown, EngineFault, InvalidRequest, RequestError, UnsupportedOperation

Handler: TypeAlias = Callable[..., Awaitable[Any]]

# A frame that starts like this is vLLM's error document inside a stream that already began.
_ERROR_PREFIXES = ('data: {"error"', "event: error\n")
_ABORTED = '"finish_reason":"abort"'
_VALIDATION_SHOWN = 3
_ID_PREFIX = {Operation.RESPONSE: "resp_"}  # vLLM makes the other ids from the request id itself


@dataclass(frozen=True, slots=True)
class _Route:
    """How one operation reaches vLLM: which attribute of the state, which method (None: call it), which wire class."""

    attribute: str
    method: str | None
    request_class: Callable[[JsonObject], type[BaseModel]]


def _always(request_class: type[BaseModel]) -> Callable[[JsonObject], type[BaseModel]]:
    return lambda _payload: request_class


def _embedding_class(payload: JsonObject) -> type[BaseModel]:
    chosen: type[BaseModel] = EmbeddingChatRequest if "messages" in payload else EmbeddingCompletionRequest
    return chosen


def _tokenize_class(payload: JsonObject) -> type[BaseModel]:
    chosen: type[BaseModel] = TokenizeChatRequest if "messages" in payload else TokenizeCompletionRequest
    return chosen


_ROUTES: dict[Operation, _Route] = {
    Operation.CHAT: _Route("openai_serving_chat", "create_chat_completion", _always(ChatCompletionRequest)),
    Operation.COMPLETION: _Route("openai_serving_completion", "create_completion", _always(CompletionRequest)),
    Operation.RESPONSE: _Route("openai_serving_responses", "create_responses", _always(ResponsesRequest)),
    Operation.MESSAGE: _Route("anthropic_serving_messages", "create_messages", _always(AnthropicMessagesRequest)),
    Operation.COUNT_TOKENS: _Route("anthropic_serving_messages", "count_tokens", _always(AnthropicCountTokensRequest)),
    Operation.EMBEDDING: _Route("serving_embedding", None, _embedding_class),
    Operation.RERANK: _Route("serving_scores", None, _always(RerankRequest)),
    Operation.SCORE: _Route("serving_scores", None, _always(ScoreTextRequest)),
    Operation.TOKENIZE: _Route("serving_tokenization", "create_tokenize", _tokenize_class),
    Operation.DETOKENIZE: _Route("serving_tokenization", "create_detokenize", _always(DetokenizeRequest)),
}


class VllmServing:
    """Calls the serving objects in `state`, which `init_app_state` has filled.

    `is_dead` says whether the engine behind them has stopped: vLLM's error documents do not tell that apart.
    """

    def __init__(self, state: State, is_dead: Callable[[], bool]) -> None:
        self._handlers = {operation: _handler(state, route) for operation, route in _ROUTES.items()}
        self._is_dead = is_dead

    def operations(self) -> frozenset[Operation]:
        return frozenset(operation for operation, handler in self._handlers.items() if handler is not None)

    async def submit(self, request: EngineRequest) -> Reply:
        """See `Engine.submit`."""
        handler = self._handlers[request.operation]
        if handler is None:
            raise UnsupportedOperation(f"model {request.model!r} does not serve {request.operation.value}")
        wire = _wire_request(request)
        try:
            return self._reply(await handler(wire, None), request.operation)
        except Exception as error:
            raise self._explained(error) from error

    def _reply(self, answer: object, operation: Operation) -> Reply:
        match answer:
            case ErrorResponse():
                raise from_document(answer)
            case Response():
                return UnaryReply(bytes(answer.body))
            case BaseModel():
                anthropic = operation is Operation.MESSAGE  # whose clients do not expect nulls
                return UnaryReply(answer.model_dump_json(exclude_none=anthropic, by_alias=True).encode())
            case AsyncGenerator():
                return StreamReply(self._events(answer))
            case _:
                raise EngineFault("the engine answered in a form that is not understood")

    async def _events(self, frames: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
        async with aclosing(frames):
            try:
                async for frame in frames:
                    yield _encode(frame)
            except Exception as error:
                raise self._explained(error) from error

    def _explained(self, error: Exception) -> RequestError:
        ours = translated(error)
        return EngineDown(STOPPED) if isinstance(ours, EngineFault) and self._is_dead() else ours


def _handler(state: State, route: _Route) -> Handler | None:
    serving = getattr(state, route.attribute, None)
    if serving is None or route.method is None:
        return serving
    return getattr(serving, route.method)  # type: ignore[no-any-return]


def _wire_request(request: EngineRequest) -> BaseModel:
    request_class = _ROUTES[request.operation].request_class(request.payload)
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


def _encode(frame: object) -> bytes:
    if isinstance(frame, BaseModel):  # the Responses API streams event models
        kind = getattr(frame, "type", "message")
        frame = f"event: {kind}\ndata: {frame.model_dump_json(by_alias=True)}\n\n"
    text = str(frame)
    if text.startswith(_ERROR_PREFIXES):
        raise _stream_error(text)
    if _ABORTED in text:
        raise EngineFault("the engine stopped this request before it was finished", code="engine_aborted")
    return text.encode()


def _stream_error(frame: str) -> Exception:
    data = frame[frame.index("data: ") + len("data: ") :]
    try:
        return from_document(ErrorResponse.model_validate_json(data))
    except ValidationError:
        return EngineFault("the engine failed on this request")
