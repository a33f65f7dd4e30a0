"""Chat and text completions on the real engine, through OpenAI's SDK."""

import json
import math
from typing import Any

import httpx
import openai
import pytest

MODEL = "smollm2-135m-instruct"
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_the_model_knows_the_capital_of_france(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=FRANCE)

    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL


def test_an_alias_reaches_the_model_under_its_own_name(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="chat", messages=FRANCE, max_tokens=1)

    assert answer.model == MODEL


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0)
    stream = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_stream_ends_with_done(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": FRANCE, "max_tokens": 3, "stream": True}
    answer = http.post("/v1/chat/completions", json=body)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")


def test_a_required_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FRANCE, tools=[WEATHER], tool_choice="required", temperature=0, max_tokens=200
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert calls[0].function.name == "get_weather"
    assert set(json.loads(calls[0].function.arguments)) == {"city"}


def test_a_named_tool_is_called_in_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=FRANCE,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=100,
        stream=True,
    )
    pieces = [call for chunk in stream for call in (chunk.choices[0].delta.tool_calls or ())]

    arguments = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
    assert set(json.loads(arguments)) == {"city"}


def test_an_answer_follows_a_json_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Name a city as JSON."}],
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}},
        max_tokens=100,
        temperature=0,
    )
    city = json.loads(answer.choices[0].message.content or "")

    assert set(city) == {"city", "big"}
    assert isinstance(city["big"], bool)


def test_json_object_gives_a_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": 'Reply with {"a": 1}'}],
        response_format={"type": "json_object"},
        max_tokens=200,
        temperature=0,
    )
    content = answer.choices[0].message.content or ""

    assert content.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)


def test_a_schema_that_is_none_is_refused_and_the_engine_lives(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model=MODEL,
            messages=FRANCE,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no-such-type"}}},
            max_tokens=10,
        )
    test_the_model_knows_the_capital_of_france(client)


def test_logprobs_come_with_alternatives_that_are_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FRANCE, logprobs=True, top_logprobs=3, max_tokens=4, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(alternative.logprob for alternative in token.top_logprobs)
        assert sum(math.exp(alternative.logprob) for alternative in token.top_logprobs) <= 1.001


def test_n_gives_so_many_choices_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def sample() -> list[str]:
        answer = client.chat.completions.create(
            model=MODEL, messages=FRANCE, n=3, seed=7, temperature=1.5, max_tokens=12
        )
        return [choice.message.content or "" for choice in answer.choices]

    first = sample()
    assert len(first) == 3
    assert len(set(first)) > 1
    assert sample() == first


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=FRANCE, stop=" France", temperature=0)

    assert answer.choices[0].message.content == "The capital of"
    assert answer.choices[0].finish_reason == "stop"


def test_a_logit_bias_forbids_a_token(client: openai.OpenAI, http: httpx.Client) -> None:
    banned = http.post("/tokenize", json={"model": MODEL, "prompt": "The", "add_special_tokens": False}).json()
    assert banned["count"] == 1

    answer = client.chat.completions.create(
        model=MODEL, messages=FRANCE, logit_bias={str(banned["tokens"][0]): -100}, temperature=0, max_tokens=5
    )
    assert not (answer.choices[0].message.content or "").startswith("The")


def test_max_tokens_is_kept_and_told(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=FRANCE, max_completion_tokens=3, temperature=0)

    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_text_completions_take_several_prompts_and_echo(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["One, two,", "Once upon"], max_tokens=4, echo=True, logprobs=1, temperature=0
    )

    assert [choice.text.startswith(prompt) for choice, prompt in zip(answer.choices, ("One", "Once"), strict=True)] == [
        True,
        True,
    ]
    assert answer.choices[0].logprobs is not None


def test_a_prompt_longer_than_the_context_is_refused_with_its_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 9000}])

    assert refusal.value.code == "context_length_exceeded"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        client.chat.completions.create(model="nobody", messages=FRANCE)

    assert refusal.value.code == "model_not_found"


def test_an_embedding_model_does_not_chat(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model="all-minilm-l6-v2", messages=FRANCE)

    assert refusal.value.code == "unsupported_operation"


def test_a_template_from_the_client_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model=MODEL, messages=FRANCE, extra_body={"chat_template": "{{ 1 }}"})

    assert refusal.value.code == "chat_template_off"


def test_both_models_are_listed_as_ready(client: openai.OpenAI, http: httpx.Client) -> None:
    states = {model["id"]: model["state"] for model in http.get("/v1/models").json()["data"]}

    assert {model.id for model in client.models.list()} == set(states)
    assert set(states.values()) == {"ready"}
    assert http.get("/readyz").status_code == 200
