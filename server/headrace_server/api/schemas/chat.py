"""`POST /v1/chat/completions` as in OpenAI's API reference, with vLLM's sampling extensions."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from headrace_server.api.schemas.common import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    JsonDocument,
    LogitBias,
    Name,
    NumTokens,
    Penalty,
    Probability,
    SamplingExtensions,
    Seed,
    Stops,
    Temperature,
    TemplateFields,
    Text,
    Wire,
    WireRequest,
)

ServiceTier = Literal["auto", "default", "flex", "priority"]


class ContentPart(Wire):
    """A part of a message; the media fields are passed on as they are, their URLs are checked by policy."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "refusal", "image_url", "input_audio", "audio_url", "video_url"]
    text: Text | None = None
    refusal: Text | None = None
    image_url: JsonDocument | Text | None = None
    input_audio: JsonDocument | None = None
    audio_url: JsonDocument | Text | None = None
    video_url: JsonDocument | Text | None = None

    @model_validator(mode="after")
    def _carries_what_it_says(self) -> Self:
        if getattr(self, self.type) is None:
            raise ValueError(f"a part of type {self.type} needs the field {self.type}")
        return self


class CalledFunction(Wire):
    """The function that an assistant's tool call named."""

    name: Name
    arguments: Text


class ToolCall(Wire):
    """A call in an assistant's earlier turn."""

    id: Name
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Wire):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[ContentPart], Field(max_length=MAX_PARTS)] | None = None
    name: Name | None = None
    refusal: Text | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Name | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a {self.role} message needs content")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a tool message needs tool_call_id")
        return self


class FunctionDefinition(Wire):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: JsonDocument | None = None
    strict: bool | None = None


class Tool(Wire):
    """A tool on offer."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Wire):
    """A function by name."""

    name: Name


class NamedToolChoice(Wire):
    """The model must call this function."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


class JsonSchemaFormat(Wire):
    """A JSON Schema that the answer must satisfy."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Text | None = None
    schema_: JsonDocument | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_where_asked(self) -> Self:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise ValueError("response_format json_schema needs json_schema.schema")
        return self


class StreamOptions(Wire):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Generation(SamplingExtensions):
    """What chat and text completions share."""

    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    max_tokens: NumTokens | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None

    @model_validator(mode="after")
    def _stream_options_belong_to_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream: true")
        return self


class ChatCompletionRequest(WireRequest, Generation, TemplateFields):
    """A chat completion."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_completion_tokens: NumTokens | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    response_format: ResponseFormat | None = None
    service_tier: ServiceTier | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: bool | None = None
    include_reasoning: bool | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice needs tools")
        if self.continue_final_message and self.add_generation_prompt is not False:
            raise ValueError("continue_final_message needs add_generation_prompt: false")
        return self
