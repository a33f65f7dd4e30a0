"""`POST /v1/responses`: OpenAI's Responses API, stateless (nothing is stored, nothing runs in the background)."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from headrace_server.api.schemas.common import (
    MAX_MESSAGES,
    MAX_TOOLS,
    JsonDocument,
    Name,
    NumTokens,
    Probability,
    SamplingExtensions,
    Seed,
    Temperature,
    Text,
    Wire,
    WireRequest,
)


class Reasoning(Wire):
    """How much the model should think."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class FunctionTool(Wire):
    """A function that the model may call; `parameters` is a JSON Schema. Hosted tools are not offered."""

    type: Literal["function"]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: JsonDocument | None = None
    strict: bool | None = None


class NamedTool(Wire):
    """The model must call this function."""

    type: Literal["function"]
    name: Name


class TextFormat(Wire):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    description: Text | None = None
    schema_: JsonDocument | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_where_asked(self) -> Self:
        if self.type == "json_schema" and (self.schema_ is None or self.name is None):
            raise ValueError("text.format json_schema needs name and schema")
        return self


class TextSettings(Wire):
    """Settings of the text output."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(WireRequest, SamplingExtensions):
    """A response; `input` is text or a list of items (messages, function calls and their outputs)."""

    input: Text | Annotated[list[JsonDocument], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: Text | None = None
    max_output_tokens: NumTokens | None = None
    max_tool_calls: Annotated[int, Field(ge=1, le=128)] | None = None
    metadata: Annotated[dict[str, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=16)] | None = (
        None
    )
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    seed: Seed | None = None
    store: bool | None = None
    stream: bool | None = None
    temperature: Temperature | None = None
    text: TextSettings | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    top_p: Probability | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None
    background: bool | None = None
    previous_response_id: Name | None = None

    @model_validator(mode="after")
    def _stateless(self) -> Self:
        if self.background:
            raise ValueError("background responses are not supported")
        if self.previous_response_id is not None:
            raise ValueError("previous_response_id is not supported: responses are not stored, send the whole input")
        return self
