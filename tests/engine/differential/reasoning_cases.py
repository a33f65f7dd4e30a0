"""Chats with a model that reasons; see `reasoning_model` for what is said in which tokens."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.engine.differential.cases import USAGE_AT_THE_END, Case, content, finished, first, user
from tests.engine.differential.engines import EngineKind
from tests.engine.differential.tool_cases import HISTORY, ONE_CALL, TIME, WEATHER, asked, called

_FRANCE = user("Name the capital of France.")  # "<think> capital of France</think> Paris.", eight tokens with the end
_THOUGHT = {"role": "assistant", "content": "<think> easy</think> It must be"}
_THINKING = {"role": "assistant", "content": "<think> capital of"}
_CITIES = ["Paris", "Rome"]
_CITY_NAME = {"type": "json_schema", "json_schema": {"name": "city", "schema": {"enum": _CITIES}}}
_CONTINUED = {"add_generation_prompt": False, "continue_final_message": True}


def _case(
    sentence: str,
    request: Mapping[str, object],
    shows: Callable[[Any], object] = bool,
    *,
    stream_options: Mapping[str, object] | None = USAGE_AT_THE_END,
) -> Case:
    return Case(
        sentence=sentence, request=request, shows=shows, engine=EngineKind.REASONING, stream_options=stream_options
    )


def _thinks(document: Any) -> bool:
    return bool(first(document)["message"]["reasoning"])


def _thinks_and_says(document: Any) -> bool:
    return _thinks(document) and bool(content(document))


def _thinks_and_calls(*names: str) -> Callable[[Any], bool]:
    return lambda document: _thinks(document) and called(*names)(document)


REASONING_CASES = (
    _case("thoughts, then an answer", {"messages": _FRANCE, "max_tokens": 16}, _thinks_and_says),
    _case(
        "thoughts without a beginning, cut by max_tokens",
        {"messages": user("Explain gravity."), "max_tokens": 16},
        lambda document: _thinks_and_says(document) and finished("length")(document),
    ),
    _case(
        "thoughts that do not end",
        {"messages": user("Count from one to five."), "max_tokens": 10},
        lambda document: _thinks(document) and not content(document),
    ),
    _case("thoughts cut right after they began", {"messages": _FRANCE, "max_tokens": 1}),
    _case("thoughts cut right after their end", {"messages": _FRANCE, "max_tokens": 5}, _thinks),
    _case(
        "thoughts that are not to be shown",
        {"messages": _FRANCE, "max_tokens": 16, "include_reasoning": False, "logprobs": True},
        lambda document: not _thinks(document) and first(document)["logprobs"] is None,
    ),
    _case(
        "running usage counts the thoughts",
        {"messages": _FRANCE, "max_tokens": 16},
        lambda document: document["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    ),
    _case(
        "thoughts with log-probabilities",
        {"messages": _FRANCE, "max_tokens": 16, "logprobs": True, "top_logprobs": 2},
        lambda document: _thinks_and_says(document) and len(first(document)["logprobs"]["content"]) > 5,
    ),
    _case(
        "a stop string among the thoughts",
        {"messages": _FRANCE, "max_tokens": 16, "stop": " of"},
        lambda document: first(document)["stop_reason"] == " of",
    ),
    _case(
        "a stop string in the answer",
        {"messages": _FRANCE, "max_tokens": 16, "stop": "aris"},
        lambda document: first(document)["stop_reason"] == "aris" and _thinks_and_says(document),
    ),
    _case(
        "thoughts in two choices",
        {"messages": _FRANCE, "max_tokens": 10, "n": 2, "seed": 4, "temperature": 1.0},
        lambda document: len(document["choices"]) == 2,
    ),
    _case(
        "thoughts that ended in the prompt",
        {"messages": [*_FRANCE, _THOUGHT], "max_tokens": 6, **_CONTINUED},
    ),
    _case(
        "thoughts that began in the prompt",
        {"messages": [*_FRANCE, _THINKING], "max_tokens": 8, **_CONTINUED},
        _thinks_and_says,
    ),
    _case(
        "thoughts of earlier turns",
        {
            "messages": [
                *user("Name the capital of Italy."),
                {"role": "assistant", "content": "Rome.", "reasoning": "easy", "reasoning_content": "easy"},
                *_FRANCE,
            ],
            "max_tokens": 8,
        },
    ),
    _case("an effort of none", {"messages": _FRANCE, "max_tokens": 10, "reasoning_effort": "none"}),
    _case(
        "thoughts, then JSON of a schema",
        {"messages": _FRANCE, "max_tokens": 20, "response_format": _CITY_NAME},
        lambda document: _thinks(document) and json.loads(content(document)) in _CITIES,
    ),
    _case(
        "hidden thoughts and JSON of a schema",
        {"messages": _FRANCE, "max_tokens": 20, "response_format": _CITY_NAME, "include_reasoning": False},
        lambda document: not _thinks(document),
    ),
    _case(
        "thoughts, and tools that are not called",
        {"messages": _FRANCE, "tools": [WEATHER], "max_tokens": 16},
        _thinks_and_says,
    ),
    _case("a call among the thoughts is a thought", {**ONE_CALL, "max_tokens": 40}, _thinks),
    _case(
        "thoughts, then a required call",
        {"messages": _FRANCE, "tools": [WEATHER, TIME], "tool_choice": "required", "max_tokens": 72},
        lambda document: any(_thinks_and_calls(name)(document) for name in ("get_weather", "get_time")),
    ),
    _case(
        "thoughts, then a named call",
        {
            "messages": _FRANCE,
            "tools": [WEATHER, TIME],
            "tool_choice": {"type": "function", "function": {"name": "get_time"}},
            "max_tokens": 72,
        },
        _thinks_and_calls("get_time"),
    ),
    _case(
        "thoughts, then a call that the model chooses",
        {**ONE_CALL, "messages": asked("get_weather", question="Weather", before="<think> easy</think>")},
        _thinks_and_calls("get_weather"),
    ),
    _case("thoughts after earlier calls", {"messages": HISTORY, "tools": [WEATHER], "max_tokens": 8}),
)
