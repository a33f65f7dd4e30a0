"""Chats without tools and without reasoning."""

import json
from collections.abc import Callable
from typing import Any

from tests.engine.differential.cases import Case, content, finished, first, user

FRANCE = user("What is the capital of France?")  # "The capital of France is Paris.", eight tokens with the end
BEGUN = [*FRANCE, {"role": "assistant", "content": "The capital of"}]
IS = 314  # the token " is"
START, END = 1, 2  # <|im_start|>, <|im_end|>
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
CITY_FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}


def _says(text: str) -> Callable[[Any], bool]:
    return lambda document: content(document) == text


def _stopped_by(reason: object) -> Callable[[Any], bool]:
    return lambda document: first(document)["stop_reason"] == reason


def _num_alternatives(number: int) -> Callable[[Any], bool]:
    return lambda document: all(len(token["top_logprobs"]) == number for token in _tokens(document))


def _tokens(document: Any) -> list[Any]:
    return list(first(document)["logprobs"]["content"])


def _split_characters(document: Any) -> bool:
    """Some tokens are part of a character, so that they have no text of their own."""
    return any(token["token"] in ("", "\N{REPLACEMENT CHARACTER}") for token in _tokens(document))


_PLAIN = (
    Case(
        sentence="a plain chat comes token by token",
        request={"messages": user("Explain gravity."), "max_tokens": 20},
        shows=finished("length"),
        token_by_token=True,
    ),
    Case(
        sentence="a chat that the model ends",
        request={"messages": FRANCE, "max_tokens": 20},
        shows=lambda document: finished("stop")(document) and "Paris" in content(document),
    ),
    Case(
        sentence="several turns under a system prompt",
        request={
            "messages": [
                {"role": "system", "content": "You answer in one word."},
                *user("Name a colour."),
                {"role": "assistant", "content": "Blue."},
                *user("Another one."),
            ],
            "max_tokens": 8,
        },
    ),
    Case(
        sentence="a message in parts, by a user with a name",
        request={
            "messages": [
                {
                    "role": "user",
                    "name": "anna",
                    "content": [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of Italy?"}],
                }
            ],
            "max_tokens": 8,
        },
    ),
    Case(
        sentence="max_completion_tokens ends the answer",
        request={"messages": FRANCE, "max_completion_tokens": 3},
        shows=lambda document: document["usage"]["completion_tokens"] == 3 and finished("length")(document),
    ),
    Case(
        sentence="max_completion_tokens goes before max_tokens",
        request={"messages": FRANCE, "max_completion_tokens": 3, "max_tokens": 5},
        shows=lambda document: document["usage"]["completion_tokens"] == 3,
    ),
    Case(
        sentence="more max_tokens than the context has left are as many as it has",
        request={"messages": FRANCE, "max_tokens": 1020},
        shows=finished("stop"),
    ),
    Case(
        sentence="hints about tier, user and effort are ignored",
        request={
            "messages": FRANCE,
            "max_tokens": 4,
            "service_tier": "flex",
            "user": "u-1",
            "reasoning_effort": "low",
            "include_reasoning": False,
        },
        shows=lambda document: document.get("service_tier") is None,
    ),
)

_STOPS = (
    Case(
        sentence="a stop string ends the answer before it",
        request={"messages": FRANCE, "max_tokens": 20, "stop": " France"},
        shows=lambda document: _says("The capital of")(document) and _stopped_by(" France")(document),
    ),
    Case(
        sentence="the first of several stop strings ends the answer",
        request={"messages": FRANCE, "max_tokens": 20, "stop": ["Paris", " of", "zebra"]},
        shows=_stopped_by(" of"),
    ),
    Case(
        sentence="a stop string is kept where that is asked for",
        request={"messages": FRANCE, "max_tokens": 20, "stop": " France", "include_stop_str_in_output": True},
        shows=_says("The capital of France"),
    ),
    Case(
        sentence="a stop string over several tokens",
        request={"messages": FRANCE, "max_tokens": 20, "stop": "ital of Fr"},
        shows=_says("The cap"),
    ),
    Case(
        sentence="text held back for a stop string that does not come is sent in the end",
        request={"messages": FRANCE, "max_tokens": 20, "stop": "Paris. Nevertheless"},
        shows=_says("The capital of France is Paris."),
    ),
    Case(
        sentence="a stop string that matches at once leaves nothing",
        request={"messages": FRANCE, "max_tokens": 20, "stop": "The"},
        shows=_says(""),
    ),
    Case(
        sentence="a stop string with log-probabilities",
        request={"messages": FRANCE, "max_tokens": 20, "stop": " France is", "logprobs": True},
        shows=_says("The capital of"),
    ),
    Case(
        sentence="a stop token ends the answer and is told",
        request={"messages": FRANCE, "max_tokens": 20, "stop_token_ids": [IS]},
        shows=_stopped_by(IS),
    ),
    Case(
        sentence="min_tokens keeps the model from ending",
        request={"messages": FRANCE, "max_tokens": 12, "min_tokens": 10},
        shows=finished("length"),
    ),
    Case(
        sentence="ignore_eos lets the model go on after its end",
        request={"messages": FRANCE, "max_tokens": 12, "ignore_eos": True},
        shows=finished("length"),
    ),
    Case(
        sentence="special tokens are shown where that is asked for",
        request={"messages": FRANCE, "max_tokens": 12, "ignore_eos": True, "skip_special_tokens": False},
        shows=lambda document: "<|im_end|>" in content(document),
    ),
    Case(
        sentence="an answer of nothing but its end is empty",
        request={"messages": FRANCE, "max_tokens": 5, "logit_bias": {str(END): 100.0}},
        shows=lambda document: _says("")(document) and finished("stop")(document),
    ),
    Case(
        sentence="an answer of one special token is empty",
        request={"messages": FRANCE, "max_tokens": 1, "logit_bias": {str(START): 100.0}},
        shows=lambda document: _says("")(document) and finished("length")(document),
    ),
)

_SAMPLING = (
    Case(
        sentence="three choices from one seed",
        request={"messages": FRANCE, "max_tokens": 8, "n": 3, "seed": 7, "temperature": 1.5},
        shows=lambda document: len({choice["message"]["content"] for choice in document["choices"]}) > 1,
    ),
    Case(
        sentence="two choices with log-probabilities and running usage",
        request={"messages": FRANCE, "max_tokens": 5, "n": 2, "seed": 8, "temperature": 1.5, "logprobs": True},
        shows=lambda document: [len(choice["logprobs"]["content"]) for choice in document["choices"]] == [5, 5],
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    ),
    Case(
        sentence="a seed with top_p, top_k and min_p",
        request={
            "messages": FRANCE,
            "max_tokens": 6,
            "seed": 1,
            "temperature": 1.2,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.01,
        },
    ),
    Case(
        sentence="penalties for repetition",
        request={
            "messages": user("Say the word rain many times."),
            "max_tokens": 12,
            "frequency_penalty": 1.0,
            "presence_penalty": 0.5,
            "repetition_penalty": 1.2,
        },
    ),
    Case(
        sentence="a logit bias forbids a token",
        request={"messages": FRANCE, "max_tokens": 5, "logit_bias": {"504": -100.0}},
        shows=lambda document: not content(document).startswith("The"),
    ),
    Case(
        sentence="log-probabilities alone",
        request={"messages": FRANCE, "max_tokens": 4, "logprobs": True},
        shows=_num_alternatives(0),
    ),
    Case(
        sentence="log-probabilities with no alternatives",
        request={"messages": FRANCE, "max_tokens": 4, "logprobs": True, "top_logprobs": 0},
        shows=_num_alternatives(0),
    ),
    Case(
        sentence="log-probabilities with five alternatives",
        request={"messages": FRANCE, "max_tokens": 10, "logprobs": True, "top_logprobs": 5},
        shows=_num_alternatives(5),
    ),
)

_FORMATS = (
    Case(
        sentence="a JSON object",
        request={
            "messages": user('Reply with {"a": 1}'),
            "max_tokens": 16,
            "response_format": {"type": "json_object"},
        },
        shows=lambda document: content(document).lstrip().startswith("{"),
    ),
    Case(
        sentence="a JSON object of a schema",
        request={"messages": user("Name a city as JSON."), "max_tokens": 40, "response_format": CITY_FORMAT},
        shows=lambda document: set(json.loads(content(document))) == {"city", "big"},
    ),
    Case(
        sentence="a JSON object that max_tokens cuts",
        request={"messages": user("Name a city as JSON."), "max_tokens": 4, "response_format": CITY_FORMAT},
        shows=finished("length"),
    ),
    Case(
        sentence="the response format text",
        request={"messages": FRANCE, "max_tokens": 4, "response_format": {"type": "text"}},
    ),
)

_USAGE = (
    Case(
        sentence="a stream without options has no usage",
        request={"messages": FRANCE, "max_tokens": 4},
        stream_options=None,
    ),
    Case(
        sentence="a stream that declines usage has none",
        request={"messages": FRANCE, "max_tokens": 4},
        stream_options={"include_usage": False},
    ),
    Case(
        sentence="running usage in every chunk",
        request={"messages": FRANCE, "max_tokens": 6},
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    ),
    Case(
        sentence="running usage needs include_usage",
        request={"messages": FRANCE, "max_tokens": 4},
        stream_options={"continuous_usage_stats": True},
    ),
)

_ECHO = (
    Case(
        sentence="an echo where the model answers has nothing to echo",
        request={"messages": FRANCE, "max_tokens": 4, "echo": True},
        shows=_says("The capital of France"),
    ),
    Case(
        sentence="the assistant's last message is continued",
        request={
            "messages": BEGUN,
            "max_tokens": 6,
            "add_generation_prompt": False,
            "continue_final_message": True,
        },
        shows=_says(" France is Paris."),
    ),
    Case(
        sentence="the assistant's last message is echoed and continued",
        request={
            "messages": BEGUN,
            "max_tokens": 6,
            "add_generation_prompt": False,
            "continue_final_message": True,
            "echo": True,
        },
        shows=_says("The capital of France is Paris."),
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    ),
    Case(
        sentence="without a generation prompt the user's message is echoed",
        request={"messages": FRANCE, "max_tokens": 4, "add_generation_prompt": False, "echo": True},
        shows=lambda document: first(document)["message"]["role"] == "user",
    ),
    Case(
        sentence="an echo in two choices with a stop string",
        request={
            "messages": BEGUN,
            "max_tokens": 6,
            "n": 2,
            "seed": 3,
            "temperature": 2.0,
            "add_generation_prompt": False,
            "continue_final_message": True,
            "echo": True,
            "stop": "zebra",
        },
        shows=lambda document: len({choice["message"]["content"] for choice in document["choices"]}) == 2,
    ),
)

_UNICODE = (
    Case(
        sentence="emoji, Chinese, combining marks and joiners",
        request={"messages": user("Repeat exactly: 🎉🦄 你好世界 é̂ 👩‍👩‍👧"), "max_tokens": 30},
        shows=lambda document: all(sign in content(document) for sign in "🎉🦄好界\u0302\u200d"),
    ),
    Case(
        sentence="characters split over tokens, with log-probabilities",
        request={"messages": user("Repeat: 🎉🦄"), "max_tokens": 10, "logprobs": True, "top_logprobs": 2},
        shows=_split_characters,
    ),
    Case(
        sentence="an answer that ends inside a character",
        request={"messages": user("Repeat: 🎉🦄"), "max_tokens": 2},
        shows=finished("length"),
    ),
    Case(
        sentence="a stop string of one character in several tokens",
        request={"messages": user("Repeat: 🎉🦄"), "max_tokens": 10, "stop": "🦄"},
        shows=_stopped_by("🦄"),
    ),
)

CHAT_CASES = (*_PLAIN, *_STOPS, *_SAMPLING, *_FORMATS, *_USAGE, *_ECHO, *_UNICODE)
