"""Requests that our wire models let pass and the engine refuses."""

from collections.abc import Mapping

from headrace_server.domain import Operation
from tests.engine.differential.cases import Case, user
from tests.engine.differential.chat_cases import FRANCE
from tests.engine.differential.tool_cases import WEATHER

_LONG = "word " * 1100  # the engines of these tests take 1024 tokens


def _schema(schema: Mapping[str, object]) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def _completion(sentence: str, request: Mapping[str, object]) -> Case:
    return Case(sentence=sentence, request=request, operation=Operation.COMPLETION)


REFUSAL_CASES = (
    Case(sentence="a chat longer than the context", request={"messages": user(_LONG)}),
    Case(
        sentence="max_completion_tokens over the context", request={"messages": FRANCE, "max_completion_tokens": 5000}
    ),
    Case(
        sentence="a schema with a type that there is not",
        request={"messages": FRANCE, "response_format": _schema({"type": "no-such-type"}), "max_tokens": 4},
    ),
    Case(
        sentence="a schema with a pattern that is no grammar",
        request={
            "messages": FRANCE,
            "response_format": _schema({"type": "string", "pattern": "(("}),
            "max_tokens": 4,
        },
    ),
    Case(
        sentence="a tool choice that names no tool",
        request={
            "messages": FRANCE,
            "tools": [WEATHER],
            "tool_choice": {"type": "function", "function": {"name": "get_moon"}},
        },
    ),
    Case(
        sentence="an image for a model that reads",
        request={
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}],
                }
            ],
            "max_tokens": 4,
        },
    ),
    Case(sentence="more min_tokens than max_tokens", request={"messages": FRANCE, "min_tokens": 9, "max_tokens": 4}),
    Case(sentence="several greedy choices", request={"messages": FRANCE, "n": 2, "max_tokens": 4}),
    Case(
        sentence="a logit bias for a token that there is not",
        request={"messages": FRANCE, "logit_bias": {"99999": 1.0}, "max_tokens": 4},
    ),
    _completion("a prompt longer than the context", {"prompt": _LONG, "max_tokens": 4}),
    _completion("one of two prompts longer than the context", {"prompt": ["One,", _LONG], "max_tokens": 4}),
    _completion("max_tokens over the context", {"prompt": "One,", "max_tokens": 5000}),
    _completion("a prompt of a token that there is not", {"prompt": [99999], "max_tokens": 4}),
    _completion("an empty prompt", {"prompt": "", "max_tokens": 4}),
    _completion(
        "a completion with a schema of a type that there is not",
        {"prompt": "One,", "response_format": _schema({"type": "no-such-type"}), "max_tokens": 4},
    ),
)
