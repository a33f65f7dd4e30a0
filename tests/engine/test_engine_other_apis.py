"""Responses, Anthropic messages, embeddings, rerank, score and tokens on the real engine."""

import json
import math
from collections.abc import Sequence

import anthropic
import httpx
import openai
import pytest

MODEL = "smollm2-135m-instruct"
EMBED = "all-minilm-l6-v2"
QUESTION = "What is the capital of France?"


def test_a_response_answers(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=20)

    assert "Paris" in response.output_text
    assert response.id.startswith("resp_")
    assert response.usage is not None
    assert response.usage.output_tokens > 0


def test_a_response_streams_the_same_text(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=20)
    events = list(
        client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=20, stream=True)
    )

    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_a_response_follows_a_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    response = client.responses.create(
        model=MODEL,
        input="Name a city as JSON.",
        text={"format": {"type": "json_schema", "name": "city", "schema": schema}},
        temperature=0,
        max_output_tokens=80,
    )

    assert set(json.loads(response.output_text)) == {"city"}


def test_a_message_answers_and_counts(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model=MODEL, max_tokens=20, messages=[{"role": "user", "content": QUESTION}])
    counted = claude.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": QUESTION}])

    assert message.content[0].type == "text"
    assert "Paris" in message.content[0].text
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens == counted.input_tokens


def test_a_message_streams(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model=MODEL, max_tokens=20, messages=[{"role": "user", "content": QUESTION}]) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()

    assert "Paris" in text
    assert message.stop_reason == "end_turn"


def test_an_unknown_model_is_not_found_for_anthropics_sdk_too(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nobody", max_tokens=5, messages=[{"role": "user", "content": "hi"}])


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def test_sentences_of_one_meaning_are_closer_than_others(client: openai.OpenAI) -> None:
    texts = ["A man is eating food.", "Someone has a meal.", "The stock market fell sharply."]
    answer = client.embeddings.create(model=EMBED, input=texts)
    meal, other_meal, market = (item.embedding for item in answer.data)

    assert len(meal) == 384
    assert cosine(meal, other_meal) > 0.5
    assert cosine(meal, market) < 0.2
    assert answer.usage.prompt_tokens > 0


def test_an_embedding_is_the_same_in_base64_and_in_numbers(client: openai.OpenAI, http: httpx.Client) -> None:
    from_base64 = client.embeddings.create(model=EMBED, input="water").data[0].embedding  # the SDK asks for base64
    body = {"model": EMBED, "input": "water", "encoding_format": "float"}
    from_numbers = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]

    assert cosine(from_base64, from_numbers) == pytest.approx(1.0, abs=1e-4)


def test_rerank_puts_the_fitting_document_first(http: httpx.Client) -> None:
    body = {
        "model": EMBED,
        "query": "What do people eat?",
        "documents": ["Bridges are made of steel.", "Bread and cheese are common food.", "The moon is far away."],
        "top_n": 2,
    }
    results = http.post("/v1/rerank", json=body).json()["results"]

    assert [result["index"] for result in results][0] == 1
    assert len(results) == 2
    assert results[0]["relevance_score"] > results[1]["relevance_score"]


def test_score_compares_one_text_with_many(http: httpx.Client) -> None:
    body = {"model": EMBED, "text_1": "a dog", "text_2": ["a puppy", "a tax form"]}
    scores = [item["score"] for item in http.post("/v1/score", json=body).json()["data"]]

    assert scores[0] > scores[1]


def test_a_chat_model_does_not_embed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.embeddings.create(model=MODEL, input="water")

    assert refusal.value.code == "unsupported_operation"


def test_tokens_come_back_as_the_text_they_were(http: httpx.Client) -> None:
    text = "Grüße aus dem Kraftwerk 🌊"
    tokens = http.post("/tokenize", json={"model": MODEL, "prompt": text, "add_special_tokens": False}).json()
    back = http.post("/detokenize", json={"model": MODEL, "tokens": tokens["tokens"]}).json()

    assert back["prompt"] == text
    assert tokens["count"] == len(tokens["tokens"])


def test_a_conversation_is_tokenized_through_its_template(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
    tokens = http.post("/tokenize", json=body).json()
    text = http.post("/detokenize", json={"model": MODEL, "tokens": tokens["tokens"]}).json()["prompt"]

    assert text.endswith("<|im_start|>assistant\n")
    assert QUESTION in text
