"""vLLM's serving objects for everything but chat and text completions: JSON in, a document or events out.

vLLM builds the objects itself (`init_app_state`), because their constructors change with every release; this module
only knows which of them serves an operation, and turns vLLM's three ways of answering (response model, async generator,
error document) into `domain.Reply` or an exception. The request's seat reaches the engine client under the objects by
`using_seat`.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError
from starlette.datastructures import State
from starlette.responses import Response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from headrace_server.domain import Demand, EngineRequest, Operation, Reply, Seat, StreamReply, UnaryReply
from headrace_server.engine.vllm_errors import Explain, aborted, from_document
from headrace_server.engine.vllm_seat import SeatInUse, using_seat
from headrace_server.engine.vllm_wire import wire_request
from headrace_server.errors import EngineFault, UnsupportedOperation

Handler: TypeAlias = Callable[..., Awaitable[Any]]

# What vLLM answers without its engine, and thus without passing by the seat.
_WITHOUT_ENGINE = frozenset({Operation.TOKENIZE, Operation.DETOKENIZE, Operation.COUNT_TOKENS})

# A frame that starts like this is vLLM's error document inside a stream that already began.
_ERROR_PREFIXES = ('data: {"error"', "event: error\n")
_ABORTED = '"finish_reason":"abort"'

# Attribute of vLLM's state, and its method; None: the object itself is called.
_HANDLERS: dict[Operation, tuple[str, str | None]] = {
    Operation.RESPONSE: ("openai_serving_responses", "create_responses"),
    Operation.MESSAGE: ("anthropic_serving_messages", "create_messages"),
    Operation.COUNT_TOKENS: ("anthropic_serving_messages", "count_tokens"),
    Operation.EMBEDDING: ("serving_embedding", None),
    Operation.RERANK: ("serving_scores", None),
    Operation.SCORE: ("serving_scores", None),
    Operation.TOKENIZE: ("serving_tokenization", "create_tokenize"),
    Operation.DETOKENIZE: ("serving_tokenization", "create_detokenize"),
}


class VllmServing:
    """Calls the serving objects in `state`, which `init_app_state` has filled. `explain` makes our error of what they
    raise."""

    def __init__(self, state: State, explain: Explain) -> None:
        self._handlers = {operation: _handler(state, *place) for operation, place in _HANDLERS.items()}
        self._explain = explain

    def operations(self) -> frozenset[Operation]:
        """What this model does."""
        return frozenset(operation for operation, handler in self._handlers.items() if handler is not None)

    async def submit(self, request: EngineRequest, seat: Seat) -> Reply:
        """See `Engine.submit`."""
        handler = self._handlers.get(request.operation)
        if handler is None:
            raise UnsupportedOperation(f"model {request.model!r} does not serve {request.operation.value}")
        wire = wire_request(request)
        place = using_seat(seat, request)
        if request.operation in _WITHOUT_ENGINE:
            await place.take(Demand(0, 0))
        try:
            return self._reply(await handler(wire, None), request.operation, place)
        except Exception as error:
            raise place.refusal or self._explain(error) from error

    def _reply(self, answer: object, operation: Operation, place: SeatInUse) -> Reply:
        match answer:
            case ErrorResponse():
                raise from_document(answer)
            case Response():
                return UnaryReply(bytes(answer.body))
            case BaseModel():
                anthropic = operation is Operation.MESSAGE  # whose clients do not expect nulls
                return UnaryReply(answer.model_dump_json(exclude_none=anthropic, by_alias=True).encode())
            case AsyncGenerator():
                return StreamReply(self._events(answer, place))
            case _:
                raise EngineFault("the engine answered in a form that is not understood")

    async def _events(self, frames: AsyncGenerator[Any, None], place: SeatInUse) -> AsyncGenerator[bytes, None]:
        """The frames, none before the seat is taken: vLLM announces a response before it asks its engine."""
        place.use()
        held: list[bytes] = []
        async with aclosing(frames):
            try:
                async for frame in frames:
                    held.append(_encode(frame))
                    if place.is_taken:
                        yield b"".join(held)
                        held.clear()
                        place.use()  # whoever reads on may be another task
            except Exception as error:
                raise place.refusal or self._explain(error) from error
        if held:
            yield b"".join(held)


def _handler(state: State, attribute: str, method: str | None) -> Handler | None:
    serving = getattr(state, attribute, None)
    if serving is None or method is None:
        return serving
    return getattr(serving, method)  # type: ignore[no-any-return]


def _encode(frame: object) -> bytes:
    if isinstance(frame, BaseModel):  # the Responses API streams event models
        kind = getattr(frame, "type", "message")
        frame = f"event: {kind}\ndata: {frame.model_dump_json(by_alias=True)}\n\n"
    text = str(frame)
    if text.startswith(_ERROR_PREFIXES):
        raise _stream_error(text)
    if _ABORTED in text:
        raise aborted()
    return text.encode()


def _stream_error(frame: str) -> Exception:
    data = frame[frame.index("data: ") + len("data: ") :]
    try:
        return from_document(ErrorResponse.model_validate_json(data))
    except ValidationError:
        return EngineFault("the engine failed on this request")
