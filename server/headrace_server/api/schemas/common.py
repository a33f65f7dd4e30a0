"""Bounds and parts that several wire models share.

Bounds come from OpenAI's API reference where it states them, else they are ours and generous: they exist so that
no request costs more than its size (lists of stop strings, huge schemas, deep nesting).
"""

from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints
from pydantic_core import PydanticCustomError

MAX_MESSAGES = 2048
MAX_PARTS = 512
MAX_TOOLS = 128
MAX_STOPS = 4
MAX_TEXT_CHARS = 4 * 1024**2
MAX_SCHEMA_NODES = 5_000
MAX_SCHEMA_DEPTH = 48
INT64 = 2**63

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]
Probability = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
NumTokens = Annotated[int, Field(ge=1, lt=2**31)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=-INT64, lt=INT64)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Stops: TypeAlias = Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)]
LogitBias = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)]


class Wire(BaseModel):
    """Base of all wire models: no coercion, no NaN, unknown fields dropped."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class WireRequest(Wire):
    """A request that names a model."""

    model: Name

    def payload(self) -> dict[str, Any]:
        """The JSON object for the engine: what the client sent, nothing that it did not."""
        return self.model_dump(exclude_unset=True, by_alias=True)


def bounded_json(value: JsonValue) -> JsonValue:
    """Refuse JSON with too many nodes or too deep, before anything recursive sees it (schemas, tool arguments)."""
    level: list[JsonValue] = [value]
    num_nodes = 0
    for _ in range(MAX_SCHEMA_DEPTH):
        num_nodes += len(level)
        if num_nodes > MAX_SCHEMA_NODES:
            raise PydanticCustomError("json_too_large", "has more than {limit} values", {"limit": MAX_SCHEMA_NODES})
        level = [child for node in level for child in _children(node)]
        if not level:
            return value
    raise PydanticCustomError("json_too_deep", "is nested deeper than {limit} levels", {"limit": MAX_SCHEMA_DEPTH})


def _children(node: JsonValue) -> list[JsonValue]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


JsonDocument = Annotated[dict[str, JsonValue], AfterValidator(bounded_json)]


class SamplingExtensions(Wire):
    """Sampling fields beyond OpenAI's that vLLM understands and that are safe from any client."""

    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None


class TemplateFields(Wire):
    """Chat-template fields: refused unless the model's settings allow them."""

    chat_template: Annotated[str, StringConstraints(max_length=65_536)] | None = None
    chat_template_kwargs: JsonDocument | None = None
