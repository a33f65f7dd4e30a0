"""Text completions."""

from collections.abc import Callable, Mapping
from typing import Any

from headrace_server.domain import Operation
from tests.engine.differential.cases import USAGE_AT_THE_END, Case, finished, first
from tests.engine.differential.chat_cases import CITY_FORMAT, END

_IDS = [[2705, 28, 827, 28], [6403, 1980, 253]]  # "One, two,", "Once upon a"


def _case(
    sentence: str,
    request: Mapping[str, object],
    shows: Callable[[Any], object] = bool,
    *,
    stream_options: Mapping[str, object] | None = USAGE_AT_THE_END,
    token_by_token: bool = False,
) -> Case:
    return Case(
        sentence=sentence,
        request=request,
        shows=shows,
        operation=Operation.COMPLETION,
        stream_options=stream_options,
        token_by_token=token_by_token,
    )


def _says(text: str) -> Callable[[Any], bool]:
    return lambda document: first(document)["text"] == text


def _indices(number: int) -> Callable[[Any], bool]:
    return lambda document: [choice["index"] for choice in document["choices"]] == list(range(number))


def _echoes(text: str) -> Callable[[Any], bool]:
    return lambda document: first(document)["text"].startswith(text) and first(document)["text"] != text


def _at_most(alternatives: int) -> Callable[[Any], bool]:
    def check(document: Any) -> bool:
        found = [len(token) for token in first(document)["logprobs"]["top_logprobs"] if token is not None]
        return max(found) in (alternatives, alternatives + 1)

    return check


_PROMPTS = (
    _case("a completion comes token by token", {"prompt": "Once upon a time", "max_tokens": 20}, token_by_token=True),
    _case("a completion without max_tokens has 16", {"prompt": "Once upon a time"}, finished("length")),
    _case("a list of texts", {"prompt": ["One, two,", "Once upon a"], "max_tokens": 4}, _indices(2)),
    _case("token ids", {"prompt": _IDS[0], "max_tokens": 4}, _indices(1)),
    _case("lists of token ids", {"prompt": _IDS, "max_tokens": 4}, _indices(2)),
    _case(
        "two prompts with two choices each",
        {"prompt": _IDS, "n": 2, "seed": 3, "temperature": 1.2, "max_tokens": 5},
        _indices(4),
    ),
    _case(
        "two texts with two choices each, log-probabilities and running usage",
        {"prompt": ["One, two,", "Once upon a"], "n": 2, "seed": 4, "temperature": 1.2, "max_tokens": 4, "logprobs": 1},
        _indices(4),
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    ),
    _case(
        "hints about tier and user are ignored",
        {"prompt": "One,", "max_tokens": 2, "service_tier": "auto", "user": "u"},
    ),
)

_ENDS = (
    _case(
        "a stop string ends a completion",
        {"prompt": "One, two, three, four,", "max_tokens": 12, "stop": " six"},
        lambda document: first(document)["stop_reason"] == " six",
    ),
    _case(
        "a stop string that is kept, with log-probabilities",
        {
            "prompt": "One, two, three, four,",
            "max_tokens": 12,
            "stop": ["seven", " six,"],
            "include_stop_str_in_output": True,
            "logprobs": 0,
        },
        lambda document: first(document)["text"].endswith(" six,"),
    ),
    _case(
        "a completion of nothing but its end is empty",
        {"prompt": "One, two,", "max_tokens": 4, "logit_bias": {str(END): 100.0}},
        lambda document: _says("")(document) and finished("stop")(document),
    ),
    _case(
        "special tokens are shown in a completion where that is asked for",
        {
            "prompt": "One, two,",
            "max_tokens": 2,
            "logit_bias": {str(END): 100.0},
            "ignore_eos": True,
            "skip_special_tokens": False,
        },
        _says("<|im_end|><|im_end|>"),
    ),
    _case("a completion of a schema", {"prompt": "A city:", "max_tokens": 40, "response_format": CITY_FORMAT}),
)

_LOGPROBS = (
    _case(
        "log-probabilities of a completion, no alternatives",
        {"prompt": "One,", "max_tokens": 4, "logprobs": 0},
        _at_most(0),
    ),
    _case(
        "log-probabilities of a completion, one alternative",
        {"prompt": "One,", "max_tokens": 4, "logprobs": 1},
        _at_most(1),
    ),
    _case(
        "log-probabilities of a completion, five alternatives",
        {"prompt": "One,", "max_tokens": 4, "logprobs": 5},
        _at_most(5),
    ),
    _case(
        "log-probabilities of sampled tokens",
        {"prompt": "One,", "max_tokens": 4, "logprobs": 2, "seed": 11, "temperature": 2.0},
    ),
)

_ECHO = (
    _case("an echo", {"prompt": "One, two,", "max_tokens": 3, "echo": True}, _echoes("One, two,")),
    _case("an echo of token ids", {"prompt": _IDS[0], "max_tokens": 3, "echo": True}, _echoes("One, two,")),
    _case(
        "an echo with log-probabilities",
        {"prompt": "One, two,", "max_tokens": 3, "echo": True, "logprobs": 2},
        lambda document: first(document)["logprobs"]["token_logprobs"][0] is None,
    ),
    _case(
        "an echo of two prompts with log-probabilities and running usage",
        {"prompt": ["One, two,", "Once upon a"], "max_tokens": 2, "echo": True, "logprobs": 0},
        _indices(2),
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    ),
    _case(
        "an echo in two choices",
        {"prompt": "One, two,", "max_tokens": 3, "echo": True, "n": 2, "seed": 2, "temperature": 1.0},
        _indices(2),
    ),
)

_USAGE = (
    _case(
        "a completion's stream without options has no usage", {"prompt": "One,", "max_tokens": 3}, stream_options=None
    ),
    _case(
        "running usage in every chunk of a completion",
        {"prompt": "One,", "max_tokens": 5},
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    ),
)

_UNICODE = (
    _case(
        "emoji split over tokens, with offsets",
        {"prompt": "🎉🦄🎉🦄🎉🦄", "max_tokens": 10, "logprobs": 1},
        lambda document: "" in first(document)["logprobs"]["tokens"] and "🦄" in first(document)["text"],
    ),
    _case(
        "Chinese split over tokens",
        {"prompt": "你好世界,你好世界,你好", "max_tokens": 12},
        lambda document: "世界" in first(document)["text"],
    ),
    _case(
        "combining marks",
        {"prompt": "é̂ é̂ é̂ é̂ ", "max_tokens": 12},
        lambda document: "\u0302" in first(document)["text"],
    ),
    _case(
        "an echo of characters split over tokens",
        {"prompt": "🎉🦄🎉🦄", "max_tokens": 6, "echo": True, "logprobs": 0},
        _echoes("🎉🦄🎉🦄"),
    ),
)

COMPLETION_CASES = (*_PROMPTS, *_ENDS, *_LOGPROBS, *_ECHO, *_USAGE, *_UNICODE)
