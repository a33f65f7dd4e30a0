"""Chats with tools. The few-shot turns show SmolLM2, which knows no tools, how a call looks; it copies them."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.engine.differential.cases import Case, content, finished, first, user
from tests.engine.differential.chat_cases import CITY_FORMAT, FRANCE


def tool(name: str) -> dict[str, Any]:
    """A tool that wants a city."""
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    function = {"name": name, "description": "What a city is like now", "parameters": parameters}
    return {"type": "function", "function": function}


def _written(*names: str, city: str) -> str:
    calls = [f'<tool_call>\n{{"name": "{name}", "arguments": {{"city": "{city}"}}}}\n</tool_call>' for name in names]
    return "\n".join(calls)


def asked(*names: str, question: str, cities: Sequence[str] = ("Paris",), before: str = "") -> list[dict[str, Any]]:
    """A conversation in which the assistant has called the tools for each city, and is about to do it for Rome.
    `before` is what it says before its calls.
    """
    turns: list[dict[str, Any]] = []
    for city in cities:
        answer = {"role": "assistant", "content": before + _written(*names, city=city)}
        turns += [*user(f"{question} in {city}?"), answer]
    return [*turns, *user(f"{question} in Rome?")]


WEATHER, TIME = tool("get_weather"), tool("get_time")
ONE_CALL: Mapping[str, Any] = {
    "messages": asked("get_weather", question="Weather"),
    "tools": [WEATHER],
    "max_tokens": 44,
}
TWO_CALLS: Mapping[str, Any] = {
    "messages": asked("get_weather", "get_time", question="Weather and time", cities=("Paris", "Oslo")),
    "tools": [WEATHER, TIME],
    "max_tokens": 72,
}
_NAMED = {"type": "function", "function": {"name": "get_time"}}
# Two tool calls and their answers, as a client keeps them.
HISTORY = [
    *user("Weather in Paris and Oslo?"),
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": f"call_{city}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
            for city, arguments in (("paris", '{"city": "Paris"}'), ("oslo", '{"city": "Oslo"}'))
        ],
    },
    {"role": "tool", "tool_call_id": "call_paris", "content": "It is sunny."},
    {"role": "tool", "tool_call_id": "call_oslo", "content": [{"type": "text", "text": "It is raining."}]},
    *user("Thanks. And what is the capital of France?"),
]


def called(*names: str) -> Callable[[Any], bool]:
    """Whether the first choice calls exactly these tools, each for a city."""

    def check(document: Any) -> bool:
        calls = first(document)["message"].get("tool_calls") or []
        cities = all(set(json.loads(call["function"]["arguments"])) == {"city"} for call in calls)
        return [call["function"]["name"] for call in calls] == list(names) and cities

    return check


TOOL_CASES = (
    Case(
        sentence="a tool that the model chooses to call",
        request={**ONE_CALL, "tool_choice": "auto"},
        shows=lambda document: called("get_weather")(document) and finished("tool_calls")(document),
    ),
    Case(
        sentence="a tool that the model does not call",
        request={"messages": FRANCE, "tools": [WEATHER], "max_tokens": 12},
        shows=lambda document: called()(document) and "Paris" in content(document),
    ),
    Case(
        sentence="two calls at once",
        request=TWO_CALLS,
        shows=called("get_weather", "get_time"),
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    ),
    Case(
        sentence="of two calls only one where they may not be parallel",
        request={**TWO_CALLS, "parallel_tool_calls": False},
        shows=called("get_weather"),
    ),
    Case(
        sentence="a required tool",
        request={**ONE_CALL, "tool_choice": "required"},
        shows=lambda document: called("get_weather")(document) and finished("tool_calls")(document),
    ),
    Case(
        sentence="a required tool of two, one call only",
        request={**TWO_CALLS, "tool_choice": "required", "parallel_tool_calls": False},
        shows=called("get_weather"),
    ),
    Case(
        sentence="a named tool",
        request={**TWO_CALLS, "tool_choice": _NAMED},
        shows=called("get_time"),
    ),
    Case(
        sentence="tools that may not be called",
        request={**ONE_CALL, "tool_choice": "none"},
        shows=lambda document: called()(document) and "<tool_call>" in content(document),
    ),
    Case(
        sentence="a call without any tools on offer is text",
        request={"messages": ONE_CALL["messages"], "max_tokens": 44},
        shows=lambda document: called()(document) and "<tool_call>" in content(document),
    ),
    Case(
        sentence="a call that max_tokens cuts",
        request={**ONE_CALL, "max_tokens": 22},
        shows=finished("length"),
    ),
    Case(
        sentence="a required call that max_tokens cuts",
        request={**ONE_CALL, "tool_choice": "required", "max_tokens": 22},
        shows=finished("length"),
    ),
    Case(
        sentence="a call with log-probabilities",
        request={**ONE_CALL, "logprobs": True, "top_logprobs": 1},
        shows=lambda document: called("get_weather")(document) and first(document)["logprobs"]["content"],
    ),
    Case(
        sentence="a call in two choices",
        request={**ONE_CALL, "tool_choice": "required", "n": 2, "seed": 5, "temperature": 0.2},
        shows=lambda document: len(document["choices"]) == 2 and called("get_weather")(document),
    ),
    Case(
        sentence="tools beside a response format",
        request={**ONE_CALL, "response_format": CITY_FORMAT},
    ),
    Case(
        sentence="earlier calls and their answers",
        request={"messages": HISTORY, "tools": [WEATHER], "max_tokens": 8},
        shows=content,
    ),
    Case(
        sentence="earlier calls and their answers, without tools on offer",
        request={"messages": HISTORY, "max_tokens": 8},
        shows=content,
    ),
    Case(
        sentence="an earlier call whose arguments are no JSON",
        request={
            "messages": [
                *FRANCE,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "It was Paris."},
            ],
            "max_tokens": 4,
        },
    ),
)
