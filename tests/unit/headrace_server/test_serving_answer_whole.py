"""Deltas on their way out as one document, which says what the stream says."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.domain import Operation
from headrace_server.errors import EngineDown, EngineFault, RequestError
from headrace_server.generation import Delta, TokenLogprob, ToolCallDelta
from headrace_server.serving.answer import whole_answer
from tests.fakes.generation import FakeDeltas, generation, said
from tests.unit.headrace_server.answer_support import (
    ALWAYS,
    USAGE,
    choices_in,
    chunks_of,
    document_of,
    end,
    request,
    text,
)

pytestmark = pytest.mark.timeout(60)


class TestWholeAnswer:
    """One document."""

    async def test_it_says_what_was_asked_when_and_by_whom(self) -> None:
        before = int(time.time())
        document = await document_of(generation(said([end("a")]), fingerprint="fp"))
        assert before <= document.pop("created") <= time.time()
        assert document == {
            "id": "chatcmpl-r1",
            "object": "chat.completion",
            "model": "mill",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "a", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                    "stop_reason": None,
                }
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
            "system_fingerprint": "fp",
        }

    async def test_several_prompts_are_answered_in_their_order_and_counted_together(self) -> None:
        steps = said([end("d", 3), end("a", 0)], [end("c", 2), end("b", 1)])
        answer = generation(steps, num_choices=4, prompt_lengths=(5, 7))
        document = await document_of(answer, request(Operation.COMPLETION))
        assert [(choice["index"], choice["text"]) for choice in document["choices"]] == list(enumerate("abcd"))
        assert document["usage"] == {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16}

    async def test_usage_tells_the_reasoning_of_all_choices(self) -> None:
        steps = said([end("a", num_reasoning_tokens=2), end("b", 1, num_reasoning_tokens=3)])
        document = await document_of(generation(steps, num_choices=2))
        assert document["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}

    async def test_only_calls_leave_the_content_null(self) -> None:
        call = ToolCallDelta(0, "call-1", "open", "{}")
        document = await document_of(generation(said([end(tool_calls=(call,), finish_reason="tool_calls")])))
        message = document["choices"][0]["message"]
        assert message["content"] is None
        assert [called["function"]["name"] for called in message["tool_calls"]] == ["open"]

    @pytest.mark.parametrize("steps", [[], [[text("a")]], [[end("a", 1)]]])
    async def test_a_choice_without_an_end_is_no_answer(self, steps: list[list[Delta]]) -> None:
        with pytest.raises(EngineFault) as caught:
            await whole_answer(request(), generation(said(*steps), num_choices=2))
        assert caught.value.code == "engine_aborted"

    async def test_a_failure_is_raised_as_it_is(self) -> None:
        deltas, failure = FakeDeltas([end("a")]), EngineDown("gone")
        deltas.fail(failure)
        with pytest.raises(RequestError) as caught:
            await whole_answer(request(), generation(deltas))
        assert caught.value is failure

    async def test_cancelling_stops_the_generation(self) -> None:
        deltas = FakeDeltas([text("a")])
        reading = asyncio.ensure_future(whole_answer(request(), generation(deltas)))
        await deltas.asked.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert (deltas.closed.is_set(), deltas.was_aborted) == (True, True)

    async def test_a_delta_that_fits_no_choice_stops_the_generation(self) -> None:
        deltas = FakeDeltas([text("a", 5)])
        with pytest.raises(IndexError):
            await whole_answer(request(), generation(deltas))
        assert deltas.was_aborted


@st.composite
def tool_pieces(draw: st.DrawFn) -> list[tuple[ToolCallDelta, ...]]:
    """What deltas say of up to two tool calls, piece by piece."""
    calls = [
        [ToolCallDelta(number, f"call-{number}", draw(st.sampled_from(["open", "shut"])), "")]
        + [ToolCallDelta(number, None, None, piece) for piece in draw(st.lists(st.text(), max_size=3))]
        for number in range(draw(st.integers(0, 2)))
    ]
    flat = [piece for call in calls for piece in call]
    return [tuple(flat[start : start + 2]) for start in range(0, len(flat), 2)]


scores = st.builds(
    TokenLogprob,
    st.text(max_size=3),
    st.floats(-50, 0),
    st.lists(st.tuples(st.text(max_size=3), st.floats(-50, 0)), max_size=2, unique_by=lambda top: top[0]).map(tuple),
)


@st.composite
def choices(draw: st.DrawFn, index: int, *, is_scored: bool) -> list[Delta]:
    """One choice from its first delta to its end."""
    deltas = [
        Delta(
            index,
            draw(st.text(max_size=3)),
            draw(st.integers(0, 3)),
            reasoning=draw(st.text(max_size=2)),
            tool_calls=pieces,
            logprobs=tuple(draw(st.lists(scores, max_size=2))) if is_scored else None,
            num_reasoning_tokens=draw(st.none() | st.integers(0, 9)),
        )
        for pieces in [(), *draw(tool_pieces()), ()]
    ]
    stop = draw(st.none() | st.text(min_size=1, max_size=3) | st.integers(0, 9))
    reason = draw(st.sampled_from(["stop", "length", "tool_calls"]))
    return [*deltas, Delta(index, draw(st.text(max_size=3)), 1, reason, stop, logprobs=() if is_scored else None)]


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, list[list[Delta]]]:
    """How many choices, and the steps in which their deltas come."""
    num_choices, is_scored = draw(st.integers(1, 3)), draw(st.booleans())
    remaining = [draw(choices(index, is_scored=is_scored)) for index in range(num_choices)]
    steps = []
    while any(remaining):
        step: list[Delta] = []
        for deltas in remaining:
            num_held_back = draw(st.integers(0, 2))
            step += deltas[: 2 - num_held_back]
            del deltas[: 2 - num_held_back]
        steps.append(step)
    return num_choices, steps


def put_together(chunks: Sequence[Any], num_choices: int) -> list[dict[str, Any]]:
    """What a client makes of a chat stream: the choices of the document that it did not ask for."""
    found = [_chat_choice(index) for index in range(num_choices)]
    for choice in choices_in(chunks):
        _add(found[choice["index"]], choice)
    for choice in found:
        message = choice["message"]
        message["content"] = message["content"] or (None if message["tool_calls"] else "")
        choice["message"] = {key: value for key, value in message.items() if value or key == "content"}
    return found


def _chat_choice(index: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "", "content": "", "reasoning": "", "tool_calls": []}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": None}


def _add(whole: dict[str, Any], choice: dict[str, Any]) -> None:
    message, delta = whole["message"], choice["delta"]
    for key in ("role", "content", "reasoning"):
        message[key] += delta.get(key, "")
    for piece in delta.get("tool_calls", ()):
        if "id" in piece:
            assert piece["index"] == len(message["tool_calls"])
            message["tool_calls"].append({key: piece[key] for key in ("id", "type", "function")})
        else:
            message["tool_calls"][piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    if choice["logprobs"]:
        whole["logprobs"] = whole["logprobs"] or {"content": [], "refusal": None}
        whole["logprobs"]["content"] += choice["logprobs"]["content"]
    if choice["finish_reason"]:
        whole.update(finish_reason=choice["finish_reason"], stop_reason=choice["stop_reason"])


@given(answer=answers())
async def test_a_chat_stream_put_together_is_the_document(answer: tuple[int, list[list[Delta]]]) -> None:
    num_choices, steps = answer
    *chunks, last = await chunks_of(generation(said(*steps), num_choices=num_choices), request(stream_options=USAGE))
    document = await document_of(generation(said(*steps), num_choices=num_choices))
    for choice in document["choices"]:
        assert choice["message"].pop("refusal") is None
    assert put_together(chunks, num_choices) == document["choices"]
    assert last["usage"] == document["usage"]


@given(answer=answers())
async def test_a_text_stream_put_together_is_the_document(answer: tuple[int, list[list[Delta]]]) -> None:
    num_choices, steps = answer
    asked = request(Operation.COMPLETION)
    plain = [[Delta(d.index, d.text, 1, d.finish_reason and "stop", logprobs=d.logprobs) for d in s] for s in steps]
    chunks = await chunks_of(generation(said(*plain), num_choices=num_choices), asked)
    document = await document_of(generation(said(*plain), num_choices=num_choices), asked)
    for whole in document["choices"]:
        parts = [choice for choice in choices_in(chunks) if choice["index"] == whole["index"]]
        assert "".join(part["text"] for part in parts) == whole["text"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [whole["finish_reason"]]
        for name in whole["logprobs"] or ():
            scored = [part["logprobs"] for part in parts if part["logprobs"]]
            assert [value for scores_ in scored for value in scores_[name]] == whole["logprobs"][name]


@given(answer=answers())
async def test_usage_along_the_way_never_changes_what_a_stream_says(answer: tuple[int, list[list[Delta]]]) -> None:
    num_choices, steps = answer
    plain = await chunks_of(generation(said(*steps), num_choices=num_choices), request(stream_options=USAGE))
    always = await chunks_of(generation(said(*steps), num_choices=num_choices), request(stream_options=ALWAYS))
    assert choices_in(always) == choices_in(plain)
    assert always[-1]["usage"] == plain[-1]["usage"]
    assert all(chunk["usage"] for chunk in always)
