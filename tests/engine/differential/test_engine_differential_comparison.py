"""The comparison itself: it tells answers apart that differ in one thing, and no others. Needs no engine."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from headrace_server.domain import Operation
from tests.engine.differential.answers import Defect, Document, Frames, Refusal
from tests.engine.differential.comparison import difference
from tests.engine.differential.openai_schema import CHUNKS, DOCUMENTS, problem_with

Chunks = list[dict[str, Any]]
Change = Callable[[Any], object]


def usage(completion_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 5, "completion_tokens": completion_tokens, "total_tokens": 5 + completion_tokens}


def token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}


def chunk(delta: dict[str, Any], num_tokens: int, **fields: object) -> dict[str, Any]:
    """A chunk of a chat's stream with running usage."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **fields}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_800_000_000, "model": "m"}
    return {**head, "choices": [choice], "usage": usage(num_tokens)}


def call(**fields: object) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, **fields}]}


def stream() -> Chunks:
    """Reasoning, text with log-probabilities and a tool call, one token after the other."""
    first = chunk({"role": "assistant", "content": ""}, 0)
    return [
        first,
        chunk({"reasoning": "Hm"}, 1),
        chunk({"content": "one"}, 2, logprobs={"content": [token("one", -0.5)]}),
        chunk({"content": " two"}, 3, logprobs={"content": [token(" two", -0.25)]}),
        chunk({"content": " three"}, 4),
        chunk({"content": " four"}, 5),
        chunk(call(id="chatcmpl-tool-1", type="function", function={"name": "look", "arguments": ""}), 6),
        chunk(call(function={"arguments": '{"a":'}), 7),
        chunk(call(function={"arguments": " 1}"}), 8),
        chunk({}, 9, finish_reason="tool_calls", stop_reason=7),
        {**first, "choices": [], "usage": usage(9)},
    ]


def document() -> dict[str, Any]:
    """A unary chat with a call."""
    function = {"name": "look", "arguments": "{}"}
    message = {
        "role": "assistant",
        "content": "one",
        "tool_calls": [{"id": "chatcmpl-tool-1", "type": "function", "function": function}],
    }
    logprobs = {"content": [token("one", -0.5)]}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "tool_calls", "stop_reason": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_800_000_000, "model": "m"}
    return {**head, "choices": [choice], "usage": usage(1)}


def completion() -> dict[str, Any]:
    """A unary text completion."""
    logprobs = {"text_offset": [0], "token_logprobs": [-0.5], "tokens": ["one"], "top_logprobs": [{"one": -0.5}]}
    choice = {"index": 0, "text": "one", "logprobs": logprobs, "finish_reason": "stop"}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1_800_000_000, "model": "m"}
    return {**head, "choices": [choice], "usage": usage(1)}


def frames(chunks: Chunks, end: str = "data: [DONE]\n\n") -> Frames:
    items = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return Frames(tuple(item.encode() for item in (*items, end) if item))


def delta(chunks: Chunks, index: int) -> Any:
    return chunks[index]["choices"][0]["delta"]


def choice(chunks: Chunks, index: int) -> Any:
    return chunks[index]["choices"][0]


def merge(chunks: Chunks, index: int, text: str) -> None:
    """Make one chunk of two."""
    delta(chunks, index)["content"] = text
    chunks[index]["usage"] = chunks.pop(index + 1)["usage"]


def rename_all(chunks: Chunks, **fields: object) -> None:
    for one in chunks:
        one.update(fields)


def all_in_one(chunks: Chunks) -> None:
    """The whole text in the last of its four pieces."""
    delta(chunks, 5)["content"] = "one two three four"
    for index in (2, 3, 4):
        delta(chunks, index)["content"] = ""


STREAM_CHANGES: dict[str, Change] = {
    "another text": lambda c: delta(c, 3).update(content=" too"),
    "a lost delta": lambda c: c.pop(3),
    "a repeated delta": lambda c: c.insert(3, deepcopy(c[3])),
    "deltas in another order": lambda c: c.insert(2, c.pop(3)),
    "text cut elsewhere": lambda c: (delta(c, 2).update(content="on"), delta(c, 3).update(content="e two")),
    "all text at once": all_in_one,
    "a thought as text": lambda c: delta(c, 1).update(content=delta(c, 1).pop("reasoning")),
    "no role": lambda c: delta(c, 0).pop("role"),
    "another role": lambda c: delta(c, 0).update(role="user"),
    "a role twice": lambda c: delta(c, 2).update(role="assistant"),
    "another function": lambda c: delta(c, 6)["tool_calls"][0]["function"].update(name="see"),
    "other arguments": lambda c: delta(c, 8)["tool_calls"][0]["function"].update(arguments=" 2}"),
    "a call that begins twice": lambda c: delta(c, 8)["tool_calls"][0].update(id="chatcmpl-tool-1"),
    "a call of another index": lambda c: delta(c, 8)["tool_calls"][0].update(index=1),
    "a call's id of no known form": lambda c: delta(c, 6)["tool_calls"][0].update(id="1"),
    "another log-probability": lambda c: choice(c, 3)["logprobs"]["content"][0].update(logprob=-0.2501),
    "no log-probabilities": lambda c: choice(c, 3).update(logprobs=None),
    "another finish_reason": lambda c: choice(c, 9).update(finish_reason="stop"),
    "no finish_reason": lambda c: choice(c, 9).update(finish_reason=None),
    "a finish_reason twice": lambda c: choice(c, 8).update(finish_reason="stop"),
    "another stop_reason": lambda c: choice(c, 9).update(stop_reason="7"),
    "no usage at the end": lambda c: c.pop(),
    "another usage at the end": lambda c: c[-1].update(usage=usage(8)),
    "usage that does not add up": lambda c: c[-1].update(usage={**usage(9), "total_tokens": 9}),
    "running usage that shrinks": lambda c: c[4].update(usage=usage(1)),
    "no running usage": lambda c: [one.pop("usage") for one in c[:-1]],
    "running usage in some chunks": lambda c: c[4].pop("usage"),
    "usage before the end": lambda c: c.insert(4, c.pop()),
    "another model": lambda c: rename_all(c, model="n"),
    "another object": lambda c: rename_all(c, object="chat.completion"),
    "an id that changes": lambda c: c[4].update(id="chatcmpl-2"),
    "a time that changes": lambda c: c[4].update(created=1_800_000_001),
    "an id of no known form": lambda c: rename_all(c, id="1"),
    "another choice": lambda c: c.insert(1, {**c[0], "choices": [{**choice(c, 0), "index": 2}]}),
    "no index": lambda c: choice(c, 3).pop("index"),
    "text that is a number": lambda c: delta(c, 3).update(content=2),
    "a field that vLLM does not send": lambda c: delta(c, 3).update(thought="x"),
}
STREAM_LICENCES: dict[str, Change] = {
    "another id and another time": lambda c: rename_all(c, id="chatcmpl-2", created=1_800_000_009),
    "another id of a call": lambda c: delta(c, 6)["tool_calls"][0].update(id="call_9"),
    "an empty delta less": lambda c: delta(c, 0).pop("content"),
    "null for absent": lambda c: (delta(c, 3).update(refusal=None), choice(c, 3).pop("finish_reason")),
    "two deltas merged": lambda c: merge(c, 4, " three four"),
    "a fingerprint": lambda c: c[-1].update(system_fingerprint="fp_1"),
}
DOCUMENT_CHANGES: dict[str, Change] = {
    "another text": lambda d: d["choices"][0]["message"].update(content="two"),
    "no text": lambda d: d["choices"][0]["message"].update(content=None),
    "other arguments": lambda d: d["choices"][0]["message"]["tool_calls"][0]["function"].update(arguments="[]"),
    "a call's id of no known form": lambda d: d["choices"][0]["message"]["tool_calls"][0].update(id="1"),
    "no call": lambda d: d["choices"][0]["message"].pop("tool_calls"),
    "another log-probability": lambda d: d["choices"][0]["logprobs"]["content"][0].update(logprob=-0.5001),
    "another finish_reason": lambda d: d["choices"][0].update(finish_reason="stop"),
    "a stop_reason": lambda d: d["choices"][0].update(stop_reason=0),
    "no usage": lambda d: d.pop("usage"),
    "another usage": lambda d: d.update(usage=usage(2)),
    "another choice": lambda d: d["choices"].append(d["choices"][0]),
    "another model": lambda d: d.update(model="n"),
    "an id of no known form": lambda d: d.update(id="1"),
    "no time": lambda d: d.pop("created"),
    "a field that vLLM does not send": lambda d: d.update(thought="x"),
}
CHAT_BREAKS: dict[str, Change] = {
    "no id": lambda d: d.pop("id"),
    "an id that is a number": lambda d: d.update(id=1),
    "no choices": lambda d: d.pop("choices"),
    "no message": lambda d: d["choices"][0].pop("message"),
    "an unknown finish_reason": lambda d: d["choices"][0].update(finish_reason="abort"),
    "no finish_reason": lambda d: d["choices"][0].update(finish_reason=None),
    "an unknown role": lambda d: d["choices"][0]["message"].update(role="robot"),
    "text that is a list": lambda d: d["choices"][0]["message"].update(content=["one"]),
    "a call without a function": lambda d: d["choices"][0]["message"]["tool_calls"][0].pop("function"),
    "arguments that are an object": lambda d: d["choices"][0]["message"]["tool_calls"][0]["function"].update(
        arguments={}
    ),
    "a log-probability that is text": lambda d: d["choices"][0]["logprobs"]["content"][0].update(logprob="-1"),
    "log-probabilities without alternatives": lambda d: d["choices"][0]["logprobs"]["content"][0].pop("top_logprobs"),
    "usage without a sum": lambda d: d["usage"].pop("total_tokens"),
    "tokens that are text": lambda d: d["usage"].update(completion_tokens="1"),
    "a time with a fraction": lambda d: d.update(created=1.5),
}
CHUNK_BREAKS: dict[str, Change] = {
    "no time": lambda c: c.pop("created"),
    "no index": lambda c: c["choices"][0].pop("index"),
    "an unknown finish_reason": lambda c: c["choices"][0].update(finish_reason="abort"),
    "a call without an index": lambda c: c["choices"][0]["delta"]["tool_calls"][0].pop("index"),
    "text that is a number": lambda c: c["choices"][0]["delta"].update(content=1),
}
COMPLETION_BREAKS: dict[str, Change] = {
    "no text": lambda d: d["choices"][0].pop("text"),
    "no finish_reason": lambda d: d["choices"][0].update(finish_reason=None),
    "an offset that is text": lambda d: d["choices"][0]["logprobs"].update(text_offset=["0"]),
    "another object": lambda d: d.update(object="chat.completion"),
}


def test_a_stream_is_the_same_as_itself() -> None:
    assert difference(frames(stream()), frames(stream()), exact_pieces=True) is None


@pytest.mark.parametrize("change", STREAM_CHANGES.values(), ids=STREAM_CHANGES)
def test_a_changed_stream_is_told_apart(change: Change) -> None:
    changed = stream()
    change(changed)

    assert difference(frames(changed), frames(stream())) is not None


@pytest.mark.parametrize("change", STREAM_LICENCES.values(), ids=STREAM_LICENCES)
def test_a_stream_that_means_the_same_is_not_told_apart(change: Change) -> None:
    changed = stream()
    change(changed)

    assert difference(frames(changed), frames(stream())) is None


def test_merged_deltas_are_told_apart_where_every_token_counts() -> None:
    merged = stream()
    merge(merged, 4, " three four")

    assert difference(frames(merged), frames(stream()), exact_pieces=True) is not None
    assert difference(frames(stream()), frames(merged), exact_pieces=True) is not None


ENDS = [
    "",
    "data: [DONE]\n",
    "data: [DONE]\n\ndata: [DONE]\n\n",
    'data: {"error": {}}\n\n',
    "event: x\ndata: [DONE]\n\n",
]


@pytest.mark.parametrize("end", ENDS)
def test_a_stream_ends_with_one_done(end: str) -> None:
    assert difference(frames(stream(), end), frames(stream())) is not None


def test_a_document_is_the_same_as_itself() -> None:
    assert difference(Document(document()), Document(document())) is None


@pytest.mark.parametrize("change", DOCUMENT_CHANGES.values(), ids=DOCUMENT_CHANGES)
def test_a_changed_document_is_told_apart(change: Change) -> None:
    changed = document()
    change(changed)

    assert difference(Document(changed), Document(document())) is not None


def test_what_only_vllm_sends_may_be_left_out_but_not_changed() -> None:
    vllm = document() | {"prompt_logprobs": [1]}

    assert difference(Document(document()), Document(vllm)) is None
    assert difference(Document(document() | {"prompt_logprobs": [2]}), Document(vllm)) is not None


def test_a_refusal_is_no_answer_and_has_the_same_status_and_a_message() -> None:
    refusal = Refusal(400, "too long")

    assert difference(Refusal(400, "longer than it may be"), refusal) is None
    assert difference(Refusal(500, "too long"), refusal) is not None
    assert difference(Refusal(400, " "), refusal) is not None
    assert difference(Document(document()), refusal) is not None
    assert difference(refusal, Document(document())) is not None
    assert difference(Defect("KeyError()"), refusal) is not None
    assert difference(Document(document()), frames(stream())) is not None


def test_the_difference_is_one_line_with_its_place() -> None:
    changed = document()
    changed["choices"][0]["message"]["content"] = "two"

    assert difference(Document(changed), Document(document())) == "choices[0].message.content: ours 'two', vLLM's 'one'"


def test_good_documents_and_chunks_fit_openais_schema() -> None:
    assert problem_with(DOCUMENTS[Operation.CHAT], document()) is None
    assert problem_with(DOCUMENTS[Operation.COMPLETION], completion()) is None
    assert [problem_with(CHUNKS[Operation.CHAT], chunk) for chunk in stream()] == [None] * len(stream())


@pytest.mark.parametrize("change", CHAT_BREAKS.values(), ids=CHAT_BREAKS)
def test_a_broken_chat_does_not_fit_openais_schema(change: Change) -> None:
    broken = document()
    change(broken)

    assert problem_with(DOCUMENTS[Operation.CHAT], broken) is not None


@pytest.mark.parametrize("change", COMPLETION_BREAKS.values(), ids=COMPLETION_BREAKS)
def test_a_broken_completion_does_not_fit_openais_schema(change: Change) -> None:
    broken = completion()
    change(broken)

    assert problem_with(DOCUMENTS[Operation.COMPLETION], broken) is not None


@pytest.mark.parametrize("change", CHUNK_BREAKS.values(), ids=CHUNK_BREAKS)
def test_a_broken_chunk_does_not_fit_openais_schema(change: Change) -> None:
    broken = stream()[6]
    change(broken)

    assert problem_with(CHUNKS[Operation.CHAT], broken) is not None


def test_a_chunk_of_a_completion_may_wait_with_its_finish_reason() -> None:
    waiting = completion()
    waiting["choices"][0]["finish_reason"] = None

    assert problem_with(CHUNKS[Operation.COMPLETION], waiting) is None
