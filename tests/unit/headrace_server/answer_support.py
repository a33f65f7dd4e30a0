"""Requests for answers, deltas to answer them with, and readers that hold what is written against OpenAI's types."""

import json
from collections.abc import Sequence
from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from headrace_server.domain import EngineRequest, ModelId, Operation, RequestId
from headrace_server.generation import Delta, Generation
from headrace_server.serving.answer import AnswerStream, whole_answer
from headrace_server.tenancy.keys import EVERYONE
from tests.fakes.engine_requests import frames_of

DONE = b"data: [DONE]\n\n"
USAGE = {"include_usage": True}
ALWAYS = {"include_usage": True, "continuous_usage_stats": True}


def request(
    operation: Operation = Operation.CHAT, *, model: str = "mill", request_id: str = "r1", **payload: object
) -> EngineRequest:
    return EngineRequest(operation, ModelId(model), RequestId(request_id), EVERYONE, payload, stream=True)


def text(content: str, index: int = 0, *, num_tokens: int = 1) -> Delta:
    return Delta(index, content, num_tokens)


def end(content: str = "", index: int = 0, **fields: Any) -> Delta:
    return Delta(index, content, 1, fields.pop("finish_reason", "stop"), **fields)


async def items_of(stream: AnswerStream) -> list[bytes]:
    return [item async for item in stream]


async def chunks_of(answer: Generation, asked: EngineRequest | None = None) -> list[Any]:
    """The chunks of a finished stream, each of which fits OpenAI's type; `[DONE]` must be the last frame."""
    asked = asked or request()
    *chunks, last = [frame.data for frame in frames_of(await items_of(AnswerStream(asked, answer)))]
    assert last == "[DONE]"
    assert "[DONE]" not in chunks
    for chunk in chunks:
        assert_fits(asked.operation, chunk)
    return chunks


def assert_fits(operation: Operation, chunk: Any) -> None:
    if operation is Operation.CHAT:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        return
    # OpenAI's SDK has one type for chunks and documents; its own streams send null until the end.
    choices = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in chunk["choices"]]
    Completion.model_validate({**chunk, "choices": choices}, strict=True)


async def document_of(answer: Generation, asked: EngineRequest | None = None) -> Any:
    """A whole answer, which fits OpenAI's type."""
    asked = asked or request()
    document = json.loads((await whole_answer(asked, answer)).body)
    schema = ChatCompletion if asked.operation is Operation.CHAT else Completion
    schema.model_validate(document, strict=True)
    return document


def choices_in(chunks: Sequence[Any]) -> list[Any]:
    return [choice for chunk in chunks for choice in chunk["choices"]]
