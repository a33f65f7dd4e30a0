"""Deltas on their way out as a stream of OpenAI's chunks."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.domain import EngineRequest, ModelId, Operation, RequestId, StreamReply, UnaryReply
from headrace_server.errors import EngineDown, EngineFault
from headrace_server.generation import Delta, TokenLogprob, ToolCallDelta
from headrace_server.serving.answer import AnswerStream, written
from headrace_server.tenancy.keys import EVERYONE
from tests.fakes.engine import FakeStream
from tests.fakes.engine_requests import frames_of
from tests.fakes.generation import FakeDeltas, generation, said
from tests.unit.headrace_server.answer_support import (
    ALWAYS,
    DONE,
    USAGE,
    choices_in,
    chunks_of,
    end,
    items_of,
    request,
    text,
)

pytestmark = pytest.mark.timeout(60)


class TestFrames:
    """What stands in a stream."""

    async def test_every_choice_opens_with_its_role_before_the_first_text(self) -> None:
        steps = said([text("b", 1)], [end(), end(index=1)])
        chunks = await chunks_of(generation(steps, num_choices=2, role="user"))
        assert [(c["index"], c["delta"]) for c in choices_in(chunks)] == [
            (0, {"role": "user", "content": ""}),
            (1, {"role": "user", "content": ""}),
            (1, {"content": "b"}),
            (0, {}),
            (1, {}),
        ]

    async def test_a_text_completion_begins_with_its_text(self) -> None:
        chunks = await chunks_of(generation(said([text("a")], [end("b")])), request(Operation.COMPLETION))
        assert [choice["text"] for choice in choices_in(chunks)] == ["a", "b"]

    @pytest.mark.parametrize(
        ("operation", "head", "choice"),
        [
            (
                Operation.CHAT,
                '{"id":"chatcmpl-r1","object":"chat.completion.chunk"',
                '{"index":0,"delta":{"content":"a\\"b"},"logprobs":null,"finish_reason":null}',
            ),
            (
                Operation.COMPLETION,
                '{"id":"cmpl-r1","object":"text_completion"',
                '{"index":0,"text":"a\\"b","logprobs":null,"finish_reason":null}',
            ),
        ],
    )
    async def test_a_token_is_one_frame_of_exactly_these_bytes(
        self, operation: Operation, head: str, choice: str
    ) -> None:
        stream = AnswerStream(request(operation), generation(said([], [text('a"b')], [end()])))
        items = await items_of(stream)
        created = frames_of(items)[0].data["created"]
        frame = f'data: {head},"created":{created},"model":"mill","choices":[{choice}]}}\n\n'
        assert frame.encode() in items

    async def test_all_frames_have_the_same_id_model_and_time_of_creation(self) -> None:
        before = int(time.time())
        chunks = await chunks_of(generation(said([text("a")], [end()])), request(stream_options=USAGE))
        heads = {(chunk["id"], chunk["model"], chunk["object"], chunk["created"]) for chunk in chunks}
        ((answer_id, model, kind, created),) = heads
        assert (answer_id, model, kind) == ("chatcmpl-r1", "mill", "chat.completion.chunk")
        assert before <= created <= time.time()

    @pytest.mark.parametrize("operation", [Operation.CHAT, Operation.COMPLETION])
    @given(content=st.text(min_size=1), model=st.text(min_size=1), request_id=st.text())
    async def test_no_text_model_or_id_breaks_a_frame(
        self, operation: Operation, content: str, model: str, request_id: str
    ) -> None:
        asked = request(operation, model=model, request_id=request_id)
        chunks = await chunks_of(generation(said([text(content)], [end(content)])), asked)
        assert {(chunk["model"], chunk["id"].partition("-")[2]) for chunk in chunks} == {(model, request_id)}
        shown = "".join(c["delta"].get("content", "") if "delta" in c else c["text"] for c in choices_in(chunks))
        assert shown == content * 2

    @pytest.mark.parametrize(
        "odd", ['"', "\\", "%d", "%", "%%s", "\n\n", "\r\ndata: x", "\x00\x1f\x7f", "\u2028\u2029\u0085", "😀"]
    )
    async def test_what_is_special_to_json_to_events_or_to_a_template_is_not_special(self, odd: str) -> None:
        chunks = await chunks_of(
            generation(said([text(odd, 1)], [end(odd, 1), end()]), num_choices=2),
            request(model=odd, request_id=odd),
        )
        assert {(chunk["id"], chunk["model"]) for chunk in chunks} == {(f"chatcmpl-{odd}", odd)}
        assert [c["delta"].get("content") for c in choices_in(chunks) if c["index"] == 1] == ["", odd, odd]

    async def test_a_step_leaves_as_one_item_of_whole_frames(self) -> None:
        steps = said([text("a")], [text("b"), text("c", 1), text("d")], [end(), end(index=1)])
        items = await items_of(AnswerStream(request(), generation(steps, num_choices=2)))
        assert [len(frames_of([item])) for item in items] == [3, 3, 2, 1]
        middle = [frame.data["choices"][0] for frame in frames_of(items[1:2])]
        assert [(c["index"], c["delta"]["content"]) for c in middle] == [(0, "b"), (1, "c"), (0, "d")]

    async def test_a_token_that_shows_nothing_is_not_sent_but_counted(self) -> None:
        deltas = FakeDeltas([text("a")], [text("")], [text(""), text("")], [], [text("b", num_tokens=2)], [end()])
        deltas.end()
        stream = AnswerStream(request(stream_options=USAGE), generation(deltas))
        items = await items_of(stream)
        assert len(items) == 4  # a, b, the end, usage with [DONE]
        usage = frames_of(items)[-2].data["usage"]
        assert usage["completion_tokens"] == 7

    async def test_the_opening_does_not_wait_for_text_to_show(self) -> None:
        stream = AnswerStream(request(), generation(FakeDeltas([text("")])))
        (opening,) = frames_of([await anext(stream)])
        assert opening.data["choices"][0]["delta"]["role"] == "assistant"
        await stream.aclose()

    async def test_an_end_says_why_and_what_stopped_it(self) -> None:
        steps = said([text("a"), text("b", 1)], [end("c", 1, finish_reason="length")], [end(stop_reason="END")])
        *_, second, first = choices_in(await chunks_of(generation(steps, num_choices=2)))
        assert (second["index"], second["finish_reason"], second["stop_reason"]) == (1, "length", None)
        assert second["delta"] == {"content": "c"}
        assert (first["index"], first["finish_reason"], first["stop_reason"]) == (0, "stop", "END")

    async def test_reasoning_tool_calls_and_log_probabilities_come_as_they_are_made(self) -> None:
        score = TokenLogprob("a", -0.5, (("a", -0.5),))
        steps = said(
            [Delta(0, "", 1, reasoning="hm")],
            [Delta(0, "", 1, tool_calls=(ToolCallDelta(0, "call-1", "open", ""),))],
            [Delta(0, "", 1, tool_calls=(ToolCallDelta(0, None, None, "{}"),))],
            [Delta(0, "", 1, logprobs=(score,))],
            [end(finish_reason="tool_calls")],
        )
        _, thought, call, arguments, scored, last = choices_in(await chunks_of(generation(steps)))
        assert thought["delta"] == {"reasoning": "hm"}
        assert call["delta"]["tool_calls"][0]["function"] == {"name": "open", "arguments": ""}
        assert arguments["delta"]["tool_calls"] == [{"index": 0, "function": {"arguments": "{}"}}]
        assert scored["logprobs"]["content"][0]["logprob"] == -0.5
        assert last["finish_reason"] == "tool_calls"

    @pytest.mark.parametrize("fingerprint", ["fp", None])
    async def test_the_fingerprint_stands_where_a_choice_ends(self, fingerprint: str | None) -> None:
        steps = said([text("a"), text("b", 1)], [end(index=1)], [end()])
        chunks = await chunks_of(generation(steps, num_choices=2, fingerprint=fingerprint))
        told = [chunk.get("system_fingerprint") for chunk in chunks]
        assert told == [None] * 4 + [fingerprint] * 2
        assert fingerprint or not any("system_fingerprint" in chunk for chunk in chunks)

    async def test_the_fingerprint_stands_beside_the_usage_where_that_is_asked_for(self) -> None:
        chunks = await chunks_of(generation(said([end("a")]), fingerprint="fp"), request(stream_options=USAGE))
        assert [chunk.get("system_fingerprint") for chunk in chunks] == [None, None, "fp"]


class TestUsage:
    """`stream_options`."""

    @pytest.mark.parametrize(
        "options", [None, {}, {"include_usage": False}, {"continuous_usage_stats": True}, {"include_usage": None}]
    )
    async def test_it_is_told_only_if_asked_for(self, options: object) -> None:
        chunks = await chunks_of(generation(said([end("a")])), request(stream_options=options))
        assert not any("usage" in chunk for chunk in chunks)
        assert all(chunk["choices"] for chunk in chunks)

    async def test_it_comes_last_without_choices_and_leaves_with_done(self) -> None:
        answer = generation(said([text("a"), text("b", 1)], [end(), end(index=1)]), num_choices=2)
        items = await items_of(AnswerStream(request(stream_options=USAGE), answer))
        assert items[-1].endswith(DONE)
        *chunks, usage, _ = [frame.data for frame in frames_of(items)]
        assert not any("usage" in chunk for chunk in chunks)
        assert usage["choices"] == []
        assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}

    async def test_it_tells_the_reasoning(self) -> None:
        steps = said([end("a", num_reasoning_tokens=5)])
        *_, last = await chunks_of(generation(steps), request(stream_options=USAGE))
        assert last["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}

    async def test_every_chunk_tells_that_of_its_choice_so_far_if_asked_to(self) -> None:
        steps = said([text("a"), text("", 1)], [text("b", 1)], [end(), end(index=1)])
        answer = generation(steps, num_choices=2, prompt_lengths=(5, 7))
        *chunks, last = await chunks_of(answer, request(Operation.CHAT, stream_options=ALWAYS))
        told = [(chunk["choices"][0]["index"], *chunk["usage"].values()) for chunk in chunks]
        assert told == [(0, 5, 0, 5), (1, 7, 0, 7), (0, 5, 1, 6), (1, 7, 2, 9), (0, 5, 2, 7), (1, 7, 3, 10)]
        assert last["usage"] == {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}


class TestTheEnd:
    """A stream ends in one way of three: `[DONE]`, a failure, or because nobody wants it any more."""

    async def test_done_comes_once_and_nothing_after_it(self) -> None:
        deltas = said([end("a")])
        stream = AnswerStream(request(), generation(deltas))
        items = await items_of(stream)
        assert (items[-1], b"".join(items).count(b"[DONE]")) == (DONE, 1)
        num_asked = deltas.num_asked
        assert [item async for item in stream] == []
        assert deltas.num_asked == num_asked
        assert (deltas.closed.is_set(), deltas.was_aborted) == (True, False)

    @pytest.mark.parametrize("steps", [[], [[text("a")]], [[end("a", 1)]], [[end("a", 0)]]])
    @pytest.mark.parametrize("options", [None, USAGE])
    async def test_a_choice_without_an_end_is_a_fault_and_not_done(
        self, steps: list[list[Delta]], options: object
    ) -> None:
        stream = AnswerStream(request(stream_options=options), generation(said(*steps), num_choices=2))
        items = [await anext(stream) for _ in steps]
        with pytest.raises(EngineFault) as caught:
            await anext(stream)
        assert caught.value.code == "engine_aborted"
        assert b"[DONE]" not in b"".join(items)
        assert [item async for item in stream] == []

    @pytest.mark.parametrize("num_steps", [0, 1])
    async def test_a_failure_is_raised_as_it_is(self, num_steps: int) -> None:
        deltas, failure = FakeDeltas(*[[text("a")]] * num_steps), EngineDown("gone")
        deltas.fail(failure)
        stream = AnswerStream(request(), generation(deltas))
        for _ in range(num_steps):
            await anext(stream)
        with pytest.raises(EngineDown) as caught:
            await anext(stream)
        assert caught.value is failure

    @pytest.mark.parametrize("last", [text("a"), end("a")], ids=["an open choice", "every choice ended"])
    async def test_nothing_comes_after_a_failure(self, last: Delta) -> None:
        deltas = FakeDeltas([last])
        deltas.fail(EngineDown("gone"))
        stream = AnswerStream(request(), generation(deltas))
        await anext(stream)
        with pytest.raises(EngineDown):
            await anext(stream)
        assert [item async for item in stream] == []

    async def test_closing_stops_the_generation_and_ends_the_stream(self) -> None:
        deltas = FakeDeltas([end("a")])
        stream = AnswerStream(request(), generation(deltas))
        await anext(stream)
        await stream.aclose()
        assert (deltas.closed.is_set(), deltas.was_aborted) == (True, True)
        assert [item async for item in stream] == []

    async def test_closing_before_the_first_read_asks_nothing_of_the_engine(self) -> None:
        deltas = FakeDeltas([end("a")])
        stream = AnswerStream(request(), generation(deltas))
        await stream.aclose()
        assert (deltas.closed.is_set(), deltas.num_asked) == (True, 0)
        assert [item async for item in stream] == []

    async def test_closing_twice_or_after_the_end_is_no_abort(self) -> None:
        deltas = said([end("a")])
        stream = AnswerStream(request(), generation(deltas))
        await items_of(stream)
        await stream.aclose()
        await stream.aclose()
        assert not deltas.was_aborted

    async def test_cancelling_a_read_stops_the_generation(self) -> None:
        deltas = FakeDeltas()
        stream = AnswerStream(request(), generation(deltas))
        read = asyncio.ensure_future(anext(stream))
        await deltas.asked.wait()
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        await stream.aclose()
        assert (deltas.closed.is_set(), deltas.was_aborted) == (True, True)

    async def test_a_reader_whose_stream_is_closed_meanwhile_sees_the_end_and_no_done(self) -> None:
        deltas = _Yielding([end("a")])
        stream = AnswerStream(request(), generation(deltas))
        await anext(stream)
        read = asyncio.ensure_future(anext(stream))
        await deltas.asked.wait()
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await read

    async def test_closing_a_generator_that_is_being_read_is_an_error_and_the_reader_sees_no_done(self) -> None:
        deltas = FakeDeltas([end("a")])
        stream = AnswerStream(request(), generation(deltas))
        await anext(stream)
        deltas.asked.clear()
        read = asyncio.ensure_future(anext(stream))
        await deltas.asked.wait()
        with pytest.raises(RuntimeError, match="already running"):
            await stream.aclose()
        deltas.end()
        with pytest.raises(StopAsyncIteration):
            await read


class _Yielding:
    """Deltas that may be closed while they are being read; the reader then sees the end. As the synthetic engine's."""

    def __init__(self, *steps: Sequence[Delta]) -> None:
        self.asked = asyncio.Event()
        self._steps = iter(steps)
        self._closed = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[Sequence[Delta]]:
        return self

    async def __anext__(self) -> Sequence[Delta]:
        for step in self._steps:
            return step
        self.asked.set()
        await self._closed.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._closed.set()


class TestWritten:
    """An engine's answer in the form in which it leaves."""

    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_generation_is_written_as_it_was_asked_for(self, stream: bool) -> None:
        asked = EngineRequest(Operation.CHAT, ModelId("mill"), RequestId("r1"), EVERYONE, {}, stream=stream)
        reply = await written(asked, generation(said([end("a")])))
        assert isinstance(reply, StreamReply if stream else UnaryReply)
        body = b"".join([item async for item in reply.events]) if isinstance(reply, StreamReply) else reply.body
        assert body.endswith(DONE) is stream

    async def test_a_stream_is_handed_out_before_anything_is_generated(self) -> None:
        deltas = said([end("a")])
        await written(request(), generation(deltas))
        assert deltas.num_asked == 0

    @pytest.mark.parametrize("reply", [UnaryReply(b"{}"), StreamReply(FakeStream())])
    async def test_what_is_written_already_stays_as_it_is(self, reply: UnaryReply | StreamReply) -> None:
        assert await written(request(Operation.RESPONSE), reply) is reply
