"""`POST /v1/messages` and `/v1/messages/count_tokens` as in Anthropic's API reference."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from headrace_server.api.schemas.common import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    JsonDocument,
    Name,
    NumTokens,
    Probability,
    Text,
    Wire,
    WireRequest,
)


class Message(Wire):
    """One turn; content blocks are passed on as they are, their URLs are checked by policy."""

    role: Literal["user", "assistant", "system"]
    content: Text | Annotated[list[JsonDocument], Field(max_length=MAX_PARTS)]


class MessageTool(Wire):
    """A tool on offer; `input_schema` is a JSON Schema."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: Text | None = None
    input_schema: JsonDocument


class MessageToolChoice(Wire):
    """Whether and which tool to call."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class CountTokensRequest(WireRequest):
    """How many tokens a message would take."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Text | Annotated[list[JsonDocument], Field(max_length=MAX_PARTS)] | None = None
    tools: Annotated[list[MessageTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: MessageToolChoice | None = None


class MessagesRequest(CountTokensRequest):
    """A message."""

    max_tokens: NumTokens
    metadata: JsonDocument | None = None
    stop_sequences: (
        Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=1024)]], Field(max_length=16)] | None
    ) = None
    stream: bool | None = None
    temperature: Probability | None = None
    thinking: JsonDocument | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    top_p: Probability | None = None
