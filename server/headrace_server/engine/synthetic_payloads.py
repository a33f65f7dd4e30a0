"""The fields of generating requests that the synthetic model heeds, as dataclasses.

The API has validated the payloads before; what is not listed here changes nothing in an answer (temperature,
penalties, ...).
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from headrace_server.domain import JsonObject
from headrace_server.errors import InvalidRequest

Payload = TypeVar("Payload")
Content: TypeAlias = str | tuple[dict[str, Any], ...] | None


def read(payload: JsonObject, kind: type[Payload]) -> Payload:
    """The payload as a dataclass; fields that the class does not have are ignored.

    Raises:
        InvalidRequest: a field is missing or has the wrong type.
    """
    try:
        return msgspec.convert(payload, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from error


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a conversation, in OpenAI's or Anthropic's shape."""

    role: str
    content: Content = None
    tool_calls: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """A function on offer; `parameters` is a JSON Schema."""

    name: str
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A tool of a chat, or the choice of one."""

    function: Function


@dataclass(frozen=True, slots=True)
class SchemaHolder:
    """`response_format.json_schema`."""

    schema: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """OpenAI's response_format, and text.format of the Responses API."""

    type: str = "text"
    json_schema: SchemaHolder | None = None
    schema: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ChatPayload:
    """`POST /v1/chat/completions`."""

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: tuple[FunctionTool, ...] | None = None
    tool_choice: str | FunctionTool | None = None
    response_format: Format | None = None


@dataclass(frozen=True, slots=True)
class CompletionPayload:
    """`POST /v1/completions`."""

    prompt: str | tuple[str | int | tuple[int, ...], ...]
    max_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    logprobs: int | None = None
    echo: bool | None = None
    response_format: Format | None = None


@dataclass(frozen=True, slots=True)
class NamedTool:
    """The choice of a tool in the Responses API."""

    name: str


@dataclass(frozen=True, slots=True)
class TextSettings:
    """`text` of the Responses API."""

    format: Format | None = None


@dataclass(frozen=True, slots=True)
class ResponsePayload:
    """`POST /v1/responses`."""

    input: str | tuple[dict[str, Any], ...]
    instructions: str | None = None
    max_output_tokens: int | None = None
    seed: int | None = None
    text: TextSettings | None = None
    tools: tuple[Function, ...] | None = None
    tool_choice: str | NamedTool | None = None


@dataclass(frozen=True, slots=True)
class MessageTool:
    """A tool of a message; `input_schema` is a JSON Schema."""

    name: str
    input_schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class MessageToolChoice:
    """Whether a message must use a tool, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class MessagePayload:
    """`POST /v1/messages`, and the counting of its tokens."""

    messages: tuple[Message, ...]
    system: Content = None
    max_tokens: int | None = None
    stop_sequences: tuple[str, ...] | None = None
    tools: tuple[MessageTool, ...] | None = None
    tool_choice: MessageToolChoice | None = None
