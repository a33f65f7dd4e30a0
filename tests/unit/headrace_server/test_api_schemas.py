"""Wire models: OpenAI's bounds, no coercion, unknown fields dropped, and nothing added that a client did not send."""

from typing import Any

import pytest
from pydantic import ValidationError

from headrace_server.api.schemas.chat import ChatCompletionRequest
from headrace_server.api.schemas.common import (
    MAX_MESSAGES,
    MAX_SCHEMA_DEPTH,
    MAX_SCHEMA_NODES,
    MAX_TEXT_CHARS,
    WireRequest,
)
from headrace_server.api.schemas.completion import MAX_PROMPTS, CompletionRequest
from headrace_server.api.schemas.messages import CountTokensRequest, MessagesRequest
from headrace_server.api.schemas.pooling import MAX_INPUTS, EmbeddingRequest, RerankRequest, ScoreRequest
from headrace_server.api.schemas.responses import ResponsesRequest
from headrace_server.api.schemas.tokens import DetokenizeRequest, TokenizeRequest

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
BASE: dict[type[WireRequest], dict[str, Any]] = {
    ChatCompletionRequest: {"messages": [USER]},
    CompletionRequest: {"prompt": "hi"},
    ResponsesRequest: {"input": "hi"},
    MessagesRequest: {"messages": [USER], "max_tokens": 1},
    CountTokensRequest: {"messages": [USER]},
    EmbeddingRequest: {"input": "hi"},
    RerankRequest: {"query": "q", "documents": ["d"]},
    ScoreRequest: {"text_1": "a", "text_2": "b"},
    TokenizeRequest: {"prompt": "hi"},
    DetokenizeRequest: {"tokens": [1]},
}


def parse(kind: type[WireRequest], **fields: Any) -> dict[str, Any]:
    """What reaches the engine of a request that is valid but for these fields."""
    return kind.model_validate({"model": "m", **BASE[kind], **fields}).payload()


def nested(depth: int) -> dict[str, Any]:
    """A document of so many levels."""
    document: dict[str, Any] = {}
    for _ in range(depth - 1):
        document = {"a": document}
    return document


def tool(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


@pytest.mark.parametrize("kind", BASE)
class TestEveryRequest:
    """Rules that hold for all of them."""

    def test_nothing_is_added_and_unknown_fields_are_dropped(self, kind: type[WireRequest]) -> None:
        assert parse(kind, unknown={"x": 1}, extra_body=1) == {"model": "m", **BASE[kind]}

    @pytest.mark.parametrize("model", [None, 17, "", "x" * 257, ["m"]])
    def test_the_model_is_a_name(self, kind: type[WireRequest], model: object) -> None:
        with pytest.raises(ValidationError):
            parse(kind, model=model)

    def test_every_required_field_is_missed(self, kind: type[WireRequest]) -> None:
        for name, field in kind.model_fields.items():
            if field.is_required():
                with pytest.raises(ValidationError, match=name):
                    kind.model_validate(
                        {key: value for key, value in {"model": "m", **BASE[kind]}.items() if key != name}
                    )


REFUSED: list[tuple[type[WireRequest], dict[str, Any]]] = [
    (ChatCompletionRequest, {"messages": []}),
    (ChatCompletionRequest, {"messages": [USER] * (MAX_MESSAGES + 1)}),
    (ChatCompletionRequest, {"messages": "hi"}),
    (ChatCompletionRequest, {"messages": [{"role": "user"}]}),
    (ChatCompletionRequest, {"messages": [{"role": "robot", "content": "x"}]}),
    (ChatCompletionRequest, {"messages": [{"role": "tool", "content": "x"}]}),
    (ChatCompletionRequest, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
    (ChatCompletionRequest, {"messages": [{"role": "user", "content": [{"type": "image_embeds", "text": "x"}]}]}),
    (ChatCompletionRequest, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "y": 1}]}]}),
    (ChatCompletionRequest, {"messages": [{"role": "user", "content": "x" * (MAX_TEXT_CHARS + 1)}]}),
    (ChatCompletionRequest, {"temperature": 2.1}),
    (ChatCompletionRequest, {"temperature": -0.1}),
    (ChatCompletionRequest, {"temperature": "1"}),
    (ChatCompletionRequest, {"temperature": float("nan")}),
    (ChatCompletionRequest, {"temperature": True}),
    (ChatCompletionRequest, {"top_p": 1.1}),
    (ChatCompletionRequest, {"top_p": float("inf")}),
    (ChatCompletionRequest, {"n": 0}),
    (ChatCompletionRequest, {"n": 129}),
    (ChatCompletionRequest, {"n": 1.5}),
    (ChatCompletionRequest, {"n": True}),
    (ChatCompletionRequest, {"max_tokens": 0}),
    (ChatCompletionRequest, {"max_completion_tokens": 2**31}),
    (ChatCompletionRequest, {"seed": 2**63}),
    (ChatCompletionRequest, {"stop": ["a"] * 5}),
    (ChatCompletionRequest, {"stop": ""}),
    (ChatCompletionRequest, {"stop": ["x" * 1025]}),
    (ChatCompletionRequest, {"logit_bias": {"1": 101}}),
    (ChatCompletionRequest, {"logit_bias": {str(token): 1 for token in range(1025)}}),
    (ChatCompletionRequest, {"frequency_penalty": 2.1}),
    (ChatCompletionRequest, {"presence_penalty": -2.1}),
    (ChatCompletionRequest, {"top_logprobs": 1}),
    (ChatCompletionRequest, {"logprobs": True, "top_logprobs": 21}),
    (ChatCompletionRequest, {"stream_options": {"include_usage": True}}),
    (ChatCompletionRequest, {"stream": "yes"}),
    (ChatCompletionRequest, {"tool_choice": "required"}),
    (ChatCompletionRequest, {"tools": []}),
    (ChatCompletionRequest, {"tools": [TOOL] * 129}),
    (ChatCompletionRequest, {"tools": [{"type": "function", "function": {"name": "no spaces"}}]}),
    (ChatCompletionRequest, {"tools": [{"type": "web_search"}]}),
    (ChatCompletionRequest, {"tools": tool(nested(MAX_SCHEMA_DEPTH + 1))}),
    (ChatCompletionRequest, {"tools": tool({"enum": [1] * MAX_SCHEMA_NODES})}),
    (ChatCompletionRequest, {"response_format": {"type": "json_schema"}}),
    (ChatCompletionRequest, {"response_format": {"type": "json_schema", "json_schema": {"name": "s"}}}),
    (ChatCompletionRequest, {"response_format": {"type": "grammar"}}),
    (ChatCompletionRequest, {"continue_final_message": True}),
    (ChatCompletionRequest, {"repetition_penalty": 0}),
    (ChatCompletionRequest, {"min_tokens": -1}),
    (ChatCompletionRequest, {"user": "x" * 513}),
    (CompletionRequest, {"prompt": []}),
    (CompletionRequest, {"prompt": ["x"] * (MAX_PROMPTS + 1)}),
    (CompletionRequest, {"prompt": [-1]}),
    (CompletionRequest, {"prompt": [[]]}),
    (CompletionRequest, {"prompt": ["x", 1]}),
    (CompletionRequest, {"logprobs": 6}),
    (CompletionRequest, {"suffix": "x"}),
    (ResponsesRequest, {"input": []}),
    (ResponsesRequest, {"background": True}),
    (ResponsesRequest, {"previous_response_id": "r"}),
    (ResponsesRequest, {"tools": [{"type": "web_search"}]}),
    (ResponsesRequest, {"text": {"format": {"type": "json_schema", "name": "s"}}}),
    (ResponsesRequest, {"input": [nested(MAX_SCHEMA_DEPTH + 1)]}),
    (ResponsesRequest, {"metadata": {str(number): "" for number in range(17)}}),
    (MessagesRequest, {"max_tokens": 0}),
    (MessagesRequest, {"temperature": 1.1}),
    (MessagesRequest, {"stop_sequences": ["x"] * 17}),
    (MessagesRequest, {"messages": [{"role": "tool", "content": "x"}]}),
    (MessagesRequest, {"messages": [{"role": "user", "content": [nested(MAX_SCHEMA_DEPTH + 1)]}]}),
    (CountTokensRequest, {"messages": []}),
    (EmbeddingRequest, {"input": []}),
    (EmbeddingRequest, {"input": ["x"] * (MAX_INPUTS + 1)}),
    (EmbeddingRequest, {"dimensions": 0}),
    (EmbeddingRequest, {"encoding_format": "hex"}),
    (RerankRequest, {"documents": []}),
    (RerankRequest, {"top_n": -1}),
    (ScoreRequest, {"text_2": []}),
    (TokenizeRequest, {"messages": [USER]}),
    (TokenizeRequest, {"prompt": None}),
    (DetokenizeRequest, {"tokens": [-1]}),
    (DetokenizeRequest, {"tokens": ["1"]}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields"), REFUSED, ids=lambda value: getattr(value, "__name__", None))
def test_what_is_out_of_bounds_is_refused(kind: type[WireRequest], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parse(kind, **fields)


ACCEPTED: list[tuple[type[WireRequest], dict[str, Any]]] = [
    (ChatCompletionRequest, {"temperature": 0, "top_p": 1, "n": 128, "seed": -(2**63), "stop": ["a"] * 4}),
    (ChatCompletionRequest, {"temperature": None, "stream": None, "stop": None, "tools": None}),
    (ChatCompletionRequest, {"logprobs": True, "top_logprobs": 20, "logit_bias": {"1": -100}}),
    (ChatCompletionRequest, {"stream": True, "stream_options": {"include_usage": True}}),
    (ChatCompletionRequest, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}),
    (ChatCompletionRequest, {"tools": tool(nested(MAX_SCHEMA_DEPTH))}),
    (ChatCompletionRequest, {"tools": tool({"enum": [1] * (MAX_SCHEMA_NODES - 2)})}),
    (ChatCompletionRequest, {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}}),
    (ChatCompletionRequest, {"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}),
    (ChatCompletionRequest, {"messages": [{"role": "assistant"}]}),
    (ChatCompletionRequest, {"messages": [{"role": "user", "content": [{"type": "text", "text": "\U0001f600"}]}]}),
    (ChatCompletionRequest, {"service_tier": "flex", "top_k": -1, "min_p": 0.1, "stop_token_ids": [2]}),
    (ChatCompletionRequest, {"chat_template": "x", "chat_template_kwargs": {"a": 1}}),
    (CompletionRequest, {"prompt": [1, 2]}),
    (CompletionRequest, {"prompt": [[1], [2]]}),
    (CompletionRequest, {"prompt": ["a", "b"], "logprobs": 5, "suffix": ""}),
    (ResponsesRequest, {"input": [{"role": "user", "content": "x"}], "instructions": "y", "store": True}),
    (ResponsesRequest, {"text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}}}),
    (MessagesRequest, {"system": [{"type": "text", "text": "x"}], "thinking": {"type": "disabled"}}),
    (MessagesRequest, {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "f"}}),
    (EmbeddingRequest, {"input": [[1], [2]], "encoding_format": "base64", "dimensions": 8}),
    (RerankRequest, {"top_n": 0}),
    (ScoreRequest, {"text_2": ["a", "b"]}),
    (DetokenizeRequest, {"tokens": []}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields"), ACCEPTED, ids=lambda value: getattr(value, "__name__", None))
def test_what_is_within_bounds_arrives_as_it_was_sent(kind: type[WireRequest], fields: dict[str, Any]) -> None:
    assert parse(kind, **fields) == {"model": "m", **BASE[kind], **fields}


def test_unknown_fields_are_dropped_from_nested_objects_too() -> None:
    assert parse(ChatCompletionRequest, messages=[{**USER, "x": 1}])["messages"] == [USER]
