import asyncio
import base64
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import MessageTokensCount, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from headrace_server.domain import EngineStats, Operation
from headrace_server.engine.base import EngineSpec
from headrace_server.engine.registry import build_engine
from headrace_server.engine.synthetic_engine import SyntheticEngine
from headrace_server.engine.synthetic_schema import instance_of
from headrace_server.engine.synthetic_vocabulary import join, split, token_id
from headrace_server.errors import EngineDown, EngineFault, InvalidRequest, UsageError
from tests.fakes.engine_requests import MODEL, Frame, document, opened, streamed
from tests.fakes.virtual_time import VirtualTime

HELLO = [{"role": "user", "content": "Where does the water come from?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 12},
        "age": {"type": "integer", "minimum": 3},
        "kind": {"enum": ["mill", "dam"]},
        "unit": {"const": "m"},
        "stones": {"type": "array", "items": {"$ref": "#/$defs/stone"}, "minItems": 2},
        "left_out": {"type": "string"},
    },
    "required": ["name", "age", "kind", "unit", "stones"],
    "$defs": {"stone": {"type": "object", "properties": {"heavy": {"type": "boolean"}}, "required": ["heavy"]}},
}
CHAT_TOOL = {"type": "function", "function": {"name": "open_gate", "parameters": SCHEMA}}
MESSAGES = {"messages": HELLO, "max_tokens": 5}
RESPONSE_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
MESSAGE_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)

GENERATING_PAYLOADS: dict[Operation, dict[str, Any]] = {
    Operation.CHAT: {"messages": HELLO},
    Operation.COMPLETION: {"prompt": "Where"},
    Operation.RESPONSE: {"input": "Where"},
    Operation.MESSAGE: MESSAGES,
}


async def started(time: VirtualTime | None = None, **arguments: object) -> SyntheticEngine:
    spec = EngineSpec(MODEL, "synthetic", arguments=arguments)
    engine = SyntheticEngine(spec, sleep=time.sleep) if time else SyntheticEngine(spec)
    await engine.start()
    return engine


def chat_text(frames: list[Frame], index: int = 0) -> str:
    choices = [frame.data["choices"] for frame in frames if frame.data != "[DONE]"]
    return "".join(c["delta"].get("content") or "" for found in choices for c in found if c["index"] == index)


def satisfies_schema(value: dict[str, Any]) -> bool:
    stones = value["stones"]
    return (
        set(value) == {"name", "age", "kind", "unit", "stones"}
        and len(value["name"]) >= 12
        and isinstance(value["age"], int)
        and value["age"] >= 3
        and (value["kind"], value["unit"]) == ("mill", "m")
        and len(stones) == 2
        and all(stone == {"heavy": True} for stone in stones)
    )


class TestStart:
    async def test_a_started_engine_offers_every_operation_and_its_context_length(self) -> None:
        engine = SyntheticEngine(EngineSpec(MODEL, "synthetic", arguments={"max_model_len": 77}))
        info = await engine.start()
        assert info.operations == frozenset(Operation)
        assert info.max_model_len == 77

    async def test_a_start_takes_load_seconds(self) -> None:
        time = VirtualTime()
        await_start = asyncio.ensure_future(started(time, load_seconds=30))
        await time.until_asleep(1)
        time.advance(29)
        assert not await_start.done()
        time.advance(1)
        await await_start

    async def test_an_engine_that_has_not_started_refuses_requests(self) -> None:
        engine = SyntheticEngine(EngineSpec(MODEL, "synthetic"))
        with pytest.raises(EngineDown):
            await document(engine, Operation.CHAT, messages=HELLO)

    def test_the_registry_builds_it(self) -> None:
        assert isinstance(build_engine(EngineSpec(MODEL, "synthetic")), SyntheticEngine)

    @pytest.mark.parametrize("arguments", [{"ttft_ms": "soon"}, {"itl_ms": -1}, {"max_num_seqs": 0}])
    def test_bad_arguments_are_a_usage_error(self, arguments: dict[str, object]) -> None:
        with pytest.raises(UsageError):
            SyntheticEngine(EngineSpec(MODEL, "synthetic", arguments=arguments))

    def test_arguments_that_are_none_take_the_default(self) -> None:
        SyntheticEngine(EngineSpec(MODEL, "synthetic", arguments={"ttft_ms": None, "max_model_len": None}))


class TestChat:
    async def test_a_reply_is_what_the_openai_sdk_expects(self) -> None:
        engine = await started()
        reply = ChatCompletion.model_validate(
            await document(engine, Operation.CHAT, messages=HELLO, max_tokens=5), strict=True
        )
        assert reply.model == MODEL
        assert reply.choices[0].message.role == "assistant"
        assert len((reply.choices[0].message.content or "").split()) == 5
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 5
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + 5

    async def test_a_reply_without_a_limit_ends_by_itself_after_sixteen_tokens(self) -> None:
        reply = await document(await started(), Operation.CHAT, messages=HELLO)
        assert reply["usage"]["completion_tokens"] == 16
        assert reply["choices"][0]["finish_reason"] == "stop"

    async def test_max_completion_tokens_wins_over_max_tokens(self) -> None:
        reply = await document(await started(), Operation.CHAT, messages=HELLO, max_tokens=9, max_completion_tokens=3)
        assert reply["usage"]["completion_tokens"] == 3

    async def test_equal_payloads_get_equal_answers_from_any_engine_with_the_same_seed(self) -> None:
        one = await document(await started(seed=4), Operation.CHAT, messages=HELLO)
        other = await document(await started(seed=4), Operation.CHAT, messages=HELLO)
        assert one["choices"] == other["choices"]

    async def test_the_seeds_of_engine_and_request_change_the_answer(self) -> None:
        engine = await started()
        plain = await document(engine, Operation.CHAT, messages=HELLO)
        seeded = await document(engine, Operation.CHAT, messages=HELLO, seed=1)
        elsewhere = await document(await started(seed=1), Operation.CHAT, messages=HELLO)
        assert len({reply["choices"][0]["message"]["content"] for reply in (plain, seeded, elsewhere)}) == 3

    async def test_a_stream_says_what_the_unary_reply_says(self) -> None:
        engine = await started()
        unary = await document(engine, Operation.CHAT, messages=HELLO, n=2, max_tokens=7)
        frames = await streamed(engine, Operation.CHAT, messages=HELLO, n=2, max_tokens=7)
        for index in (0, 1):
            assert chat_text(frames, index) == unary["choices"][index]["message"]["content"]

    async def test_a_stream_has_a_role_one_chunk_per_token_an_end_and_done(self) -> None:
        frames = await streamed(await started(), Operation.CHAT, messages=HELLO, max_tokens=3)
        chunks = [ChatCompletionChunk.model_validate(frame.data, strict=True) for frame in frames[:-1]]
        assert frames[-1].data == "[DONE]"
        assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None, None, None]
        assert [bool(chunk.choices[0].delta.content) for chunk in chunks] == [False, True, True, True]
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "length"]

    async def test_the_first_item_brings_the_role_and_the_first_token(self) -> None:
        reply = await opened(await started(), Operation.CHAT, messages=HELLO)
        first = await anext(reply.events)
        assert first.count(b"data: ") == 2
        assert b'"role":"assistant"' in first
        await reply.events.aclose()

    async def test_usage_comes_last_and_only_when_asked_for(self) -> None:
        engine = await started()
        asked = await streamed(
            engine, Operation.CHAT, messages=HELLO, max_tokens=3, stream_options={"include_usage": True}
        )
        not_asked = await streamed(engine, Operation.CHAT, messages=HELLO, max_tokens=3)
        chunk = ChatCompletionChunk.model_validate(asked[-2].data, strict=True)
        assert chunk.choices == []
        assert chunk.usage is not None
        assert chunk.usage.completion_tokens == 3
        assert not any("usage" in frame.data for frame in not_asked)

    async def test_n_choices_differ_and_all_their_tokens_count(self) -> None:
        reply = await document(await started(), Operation.CHAT, messages=HELLO, n=3, max_tokens=8)
        assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
        assert len({choice["message"]["content"] for choice in reply["choices"]}) == 3
        assert reply["usage"]["completion_tokens"] == 24

    async def test_a_stop_string_over_two_tokens_cuts_the_text_before_it(self) -> None:
        engine = await started()
        whole = (await document(engine, Operation.CHAT, messages=HELLO))["choices"][0]["message"]["content"]
        words = whole.split(" ")
        stop = f"{words[3][-2:]} {words[4][:2]}"
        reply = await document(engine, Operation.CHAT, messages=HELLO, stop=["never", stop])
        frames = await streamed(engine, Operation.CHAT, messages=HELLO, stop=stop)
        assert reply["choices"][0]["message"]["content"] == whole[: whole.index(stop)] == chat_text(frames)
        assert reply["choices"][0]["finish_reason"] == "stop"
        assert reply["usage"]["completion_tokens"] == 4

    async def test_logprobs_name_every_token_and_its_alternatives(self) -> None:
        payload: dict[str, Any] = {"messages": HELLO, "max_tokens": 4, "logprobs": True, "top_logprobs": 3}
        engine = await started()
        reply = ChatCompletion.model_validate(await document(engine, Operation.CHAT, **payload), strict=True)
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert "".join(entry.token for entry in logprobs.content) == reply.choices[0].message.content
        for entry in logprobs.content:
            assert bytes(entry.bytes or []).decode() == entry.token
            assert entry.top_logprobs[0].logprob == entry.logprob
            assert len({top.token for top in entry.top_logprobs}) == 3
        chunks = [
            ChatCompletionChunk.model_validate(frame.data, strict=True)
            for frame in (await streamed(engine, Operation.CHAT, **payload))[:-1]
        ]
        streamed_logprobs = [chunk.choices[0].logprobs for chunk in chunks]
        assert [entry for found in streamed_logprobs if found for entry in found.content or []] == [
            type(found.content[0]).model_validate(entry.model_dump())
            for entry in logprobs.content
            for found in streamed_logprobs[1:2]
            if found and found.content
        ]

    async def test_logprobs_without_alternatives_have_none(self) -> None:
        reply = await document(await started(), Operation.CHAT, messages=HELLO, logprobs=True)
        assert all(entry["top_logprobs"] == [] for entry in reply["choices"][0]["logprobs"]["content"])

    @pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "open_gate"}}])
    async def test_a_tool_that_must_be_called_is_called_with_valid_arguments(self, choice: object) -> None:
        payload: dict[str, Any] = {"messages": HELLO, "tools": [CHAT_TOOL], "tool_choice": choice}
        engine = await started()
        reply = ChatCompletion.model_validate(await document(engine, Operation.CHAT, **payload), strict=True)
        calls = reply.choices[0].message.tool_calls
        assert calls is not None
        assert calls[0].type == "function"
        assert calls[0].function.name == "open_gate"
        assert satisfies_schema(msgspec.json.decode(calls[0].function.arguments))
        assert reply.choices[0].finish_reason == "tool_calls"
        frames = await streamed(engine, Operation.CHAT, **payload)
        chunks = [ChatCompletionChunk.model_validate(frame.data, strict=True) for frame in frames[:-1]]
        deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        assert deltas[0].id
        assert deltas[0].function is not None
        assert deltas[0].function.name == "open_gate"
        assert "".join((d.function and d.function.arguments) or "" for d in deltas) == calls[0].function.arguments

    async def test_tools_that_may_be_called_are_not(self) -> None:
        reply = await document(await started(), Operation.CHAT, messages=HELLO, tools=[CHAT_TOOL])
        assert "tool_calls" not in reply["choices"][0]["message"]

    async def test_a_named_tool_that_is_not_offered_is_refused(self) -> None:
        choice = {"type": "function", "function": {"name": "close_gate"}}
        with pytest.raises(InvalidRequest):
            await document(await started(), Operation.CHAT, messages=HELLO, tools=[CHAT_TOOL], tool_choice=choice)

    async def test_a_json_schema_is_satisfied(self) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        reply = await document(await started(), Operation.CHAT, messages=HELLO, response_format=wanted)
        assert satisfies_schema(msgspec.json.decode(reply["choices"][0]["message"]["content"]))
        assert reply["choices"][0]["finish_reason"] == "stop"

    async def test_a_json_object_is_one(self) -> None:
        wanted = {"type": "json_object"}
        reply = await document(await started(), Operation.CHAT, messages=HELLO, response_format=wanted)
        assert isinstance(msgspec.json.decode(reply["choices"][0]["message"]["content"]), dict)

    async def test_json_that_does_not_fit_the_limit_is_cut_for_length(self) -> None:
        wanted = {"type": "json_object"}
        reply = await document(await started(), Operation.CHAT, messages=HELLO, response_format=wanted, max_tokens=2)
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["completion_tokens"] == 2

    async def test_a_payload_of_the_wrong_shape_is_invalid(self) -> None:
        with pytest.raises(InvalidRequest):
            await document(await started(), Operation.CHAT, messages="hello")


class TestContext:
    @pytest.mark.parametrize("operation", [*GENERATING_PAYLOADS, Operation.COUNT_TOKENS])
    async def test_a_prompt_beyond_the_context_is_refused_with_openais_code(self, operation: Operation) -> None:
        long = " water" * 50
        payload = {"prompt": long, "input": long, "messages": [{"role": "user", "content": long}], "max_tokens": 1}
        with pytest.raises(InvalidRequest) as refusal:
            await document(await started(max_model_len=49), operation, **payload)
        assert refusal.value.code == "context_length_exceeded"

    async def test_a_prompt_that_fills_the_context_can_be_embedded_but_not_continued(self) -> None:
        engine = await started(max_model_len=3)
        await document(engine, Operation.EMBEDDING, input=" water" * 3)
        with pytest.raises(InvalidRequest):
            await document(engine, Operation.COMPLETION, prompt=" water" * 3)

    async def test_an_answer_ends_where_the_context_does(self) -> None:
        reply = await document(
            await started(max_model_len=10), Operation.COMPLETION, prompt=" water" * 6, max_tokens=100
        )
        assert reply["usage"] == {
            "prompt_tokens": 6,
            "completion_tokens": 4,
            "total_tokens": 10,
        }
        assert reply["choices"][0]["finish_reason"] == "length"


class TestCompletion:
    async def test_a_reply_is_what_the_openai_sdk_expects(self) -> None:
        reply = Completion.model_validate(
            await document(await started(), Operation.COMPLETION, prompt="Where", max_tokens=5), strict=True
        )
        assert len(reply.choices[0].text.split()) == 5
        assert reply.choices[0].finish_reason == "length"

    async def test_texts_and_token_ids_are_the_same_prompt(self) -> None:
        engine = await started()
        text = "Where is the mill?"
        tokens = (await document(engine, Operation.TOKENIZE, prompt=text))["tokens"]
        replies = [
            await document(engine, Operation.COMPLETION, prompt=prompt) for prompt in (text, [text], tokens, [tokens])
        ]
        assert all(reply["choices"] == replies[0]["choices"] for reply in replies)

    async def test_every_prompt_gets_n_choices_in_order(self) -> None:
        reply = await document(await started(), Operation.COMPLETION, prompt=["one", "two"], n=2, echo=True)
        assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
        assert [choice["text"][:3] for choice in reply["choices"]] == ["one", "one", "two", "two"]

    @pytest.mark.parametrize("prompt", ["Where to?", ["Where to?"]])
    async def test_an_echoed_prompt_comes_first_streamed_or_not(self, prompt: object) -> None:
        engine = await started()
        unary = await document(engine, Operation.COMPLETION, prompt=prompt, echo=True)
        frames = await streamed(engine, Operation.COMPLETION, prompt=prompt, echo=True)
        text = "".join(frame.data["choices"][0]["text"] for frame in frames[:-1])
        assert unary["choices"][0]["text"].startswith("Where to? ")
        assert text == unary["choices"][0]["text"]
        assert [
            f.data["choices"][0]["finish_reason"] for f in frames[:-1] if f.data["choices"][0]["finish_reason"]
        ] == ["stop"]

    async def test_streamed_chunks_are_what_the_openai_sdk_expects_and_end_with_usage(self) -> None:
        frames = await streamed(
            await started(), Operation.COMPLETION, prompt="x", max_tokens=2, stream_options={"include_usage": True}
        )
        # The SDK builds chunks without validation: its type knows no null, which all servers send until the end.
        assert frames[0].data["choices"][0].pop("finish_reason") is None
        frames[0].data["choices"][0]["finish_reason"] = "stop"
        chunks = [Completion.model_validate(frame.data) for frame in frames[:-1]]
        assert chunks[1].choices[0].finish_reason == "length"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 2

    @pytest.mark.parametrize("echo", [False, True])
    async def test_logprobs_line_up_with_the_text_streamed_or_not(self, echo: bool) -> None:
        payload: dict[str, Any] = {"prompt": "Where to?", "logprobs": 2, "max_tokens": 3, "echo": echo}
        engine = await started()
        choice = (await document(engine, Operation.COMPLETION, **payload))["choices"][0]
        logprobs = choice["logprobs"]
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert choice["text"][offset:].startswith(token)
        assert [top is None for top in logprobs["top_logprobs"]] == [p is None for p in logprobs["token_logprobs"]]
        assert (logprobs["token_logprobs"][0] is None) == echo
        frames = await streamed(engine, Operation.COMPLETION, **payload)
        chunks = [frame.data["choices"][0]["logprobs"] for frame in frames[:-1]]
        joined = {name: [value for chunk in chunks for value in chunk[name]] for name in logprobs}
        assert joined == logprobs

    async def test_an_unknown_token_id_is_refused(self) -> None:
        with pytest.raises(InvalidRequest):
            await document(await started(), Operation.COMPLETION, prompt=[2**31 - 1])


class TestResponses:
    async def test_a_reply_is_what_the_openai_sdk_expects(self) -> None:
        reply = Response.model_validate(
            await document(await started(), Operation.RESPONSE, input="Where?", instructions="Be brief")
        )
        assert reply.status == "completed"
        assert len(reply.output_text.split()) == 16
        assert reply.usage is not None
        assert reply.usage.output_tokens == 16

    async def test_a_reply_cut_by_its_limit_is_incomplete(self) -> None:
        reply = Response.model_validate(
            await document(await started(), Operation.RESPONSE, input="Where?", max_output_tokens=3)
        )
        assert reply.status == "incomplete"
        assert reply.incomplete_details is not None
        assert reply.incomplete_details.reason == "max_output_tokens"

    @pytest.mark.parametrize(("limit", "ending"), [(None, "response.completed"), (3, "response.incomplete")])
    async def test_a_stream_has_the_documented_events_in_order(self, limit: int | None, ending: str) -> None:
        frames = await streamed(await started(), Operation.RESPONSE, input="Where?", max_output_tokens=limit)
        events = [RESPONSE_EVENT.validate_python(frame.data) for frame in frames]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [frame.event for frame in frames] == [event.type for event in events]
        assert [event.type for event in events] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            *["response.output_text.delta"] * (limit or 16),
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            ending,
        ]
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == events[-1].response.output_text == events[-4].text

    async def test_a_tool_that_must_be_called_is_called_streamed_or_not(self) -> None:
        tool = {"type": "function", "name": "open_gate", "parameters": SCHEMA, "strict": True}
        payload: dict[str, Any] = {"input": [HELLO[0]], "tools": [tool], "tool_choice": "required"}
        engine = await started()
        reply = Response.model_validate(await document(engine, Operation.RESPONSE, **payload))
        call = reply.output[0]
        assert call.type == "function_call"
        assert call.name == "open_gate"
        assert satisfies_schema(msgspec.json.decode(call.arguments))
        frames = await streamed(engine, Operation.RESPONSE, **payload)
        events = [RESPONSE_EVENT.validate_python(frame.data) for frame in frames]
        kind = "response.function_call_arguments.delta"
        assert "".join(event.delta for event in events if event.type == kind) == call.arguments
        assert [event.sequence_number for event in events] == list(range(len(events)))

    async def test_a_json_schema_is_satisfied(self) -> None:
        text = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
        reply = Response.model_validate(await document(await started(), Operation.RESPONSE, input="?", text=text))
        assert satisfies_schema(msgspec.json.decode(reply.output_text))


class TestMessages:
    async def test_a_reply_is_what_the_anthropic_sdk_expects(self) -> None:
        reply = AnthropicMessage.model_validate(await document(await started(), Operation.MESSAGE, **MESSAGES))
        assert reply.content[0].type == "text"
        assert len(reply.content[0].text.split()) == 5
        assert reply.stop_reason == "max_tokens"
        assert reply.usage.output_tokens == 5

    async def test_a_stream_has_the_documented_events_in_order(self) -> None:
        frames = await streamed(await started(), Operation.MESSAGE, **MESSAGES)
        events = [MESSAGE_EVENT.validate_python(frame.data) for frame in frames]
        assert [frame.event for frame in frames] == [event.type for event in events]
        assert [event.type for event in events] == [
            "message_start",
            "content_block_start",
            *["content_block_delta"] * 5,
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert events[-2].delta.stop_reason == "max_tokens"
        assert events[-2].usage.output_tokens == 5

    async def test_a_stop_sequence_is_named_as_the_reason(self) -> None:
        engine = await started()
        whole = (await document(engine, Operation.MESSAGE, **MESSAGES))["content"][0]["text"]
        stop = whole.split()[2]
        reply = await document(engine, Operation.MESSAGE, **MESSAGES, stop_sequences=[stop])
        assert (reply["stop_reason"], reply["stop_sequence"]) == ("stop_sequence", stop)
        assert reply["content"][0]["text"] == whole[: whole.index(stop)]

    @pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "open_gate"}])
    async def test_a_tool_that_must_be_used_is_used_streamed_or_not(self, choice: object) -> None:
        tools = [{"name": "open_gate", "input_schema": SCHEMA}]
        payload: dict[str, Any] = {"messages": HELLO, "max_tokens": 500, "tools": tools, "tool_choice": choice}
        engine = await started()
        reply = AnthropicMessage.model_validate(await document(engine, Operation.MESSAGE, **payload))
        assert reply.content[0].type == "tool_use"
        assert satisfies_schema(reply.content[0].input)
        assert reply.stop_reason == "tool_use"
        frames = await streamed(engine, Operation.MESSAGE, **payload)
        deltas = [frame.data["delta"] for frame in frames if frame.event == "content_block_delta"]
        assert msgspec.json.decode("".join(d["partial_json"] for d in deltas)) == reply.content[0].input

    async def test_counted_tokens_are_those_that_a_message_is_charged(self) -> None:
        engine = await started()
        payload: dict[str, Any] = {"messages": HELLO, "system": [{"type": "text", "text": "Be brief."}]}
        counted = MessageTokensCount.model_validate(await document(engine, Operation.COUNT_TOKENS, **payload))
        message = await document(engine, Operation.MESSAGE, **payload, max_tokens=1)
        assert counted.input_tokens == message["usage"]["input_tokens"] > 0


class TestPooling:
    async def test_embeddings_are_unit_vectors_that_the_openai_sdk_reads(self) -> None:
        reply = CreateEmbeddingResponse.model_validate(
            await document(await started(), Operation.EMBEDDING, input=["the mill", "the river"]), strict=True
        )
        assert [item.index for item in reply.data] == [0, 1]
        for item in reply.data:
            assert len(item.embedding) == 64
            assert sum(x * x for x in item.embedding) == pytest.approx(1)
        assert reply.usage.total_tokens == reply.usage.prompt_tokens > 0

    async def test_texts_that_share_words_are_closer(self) -> None:
        texts = ["the old mill by the river", "An OLD Mill on a river", "seventeen purple bicycles"]
        reply = await document(await started(), Operation.EMBEDDING, input=texts)
        first, near, far = (item["embedding"] for item in reply["data"])
        assert sum(map(float.__mul__, first, near)) > sum(map(float.__mul__, first, far)) + 0.2

    @pytest.mark.parametrize("dimensions", [8, 64, 256])
    async def test_dimensions_are_honoured(self, dimensions: int) -> None:
        reply = await document(await started(), Operation.EMBEDDING, input="mill", dimensions=dimensions)
        vector = reply["data"][0]["embedding"]
        assert len(vector) == dimensions
        assert sum(x * x for x in vector) == pytest.approx(1)

    async def test_too_many_dimensions_are_refused(self) -> None:
        with pytest.raises(InvalidRequest):
            await document(await started(), Operation.EMBEDDING, input="mill", dimensions=65_536)

    async def test_base64_holds_the_same_vector_in_little_endian_floats(self) -> None:
        engine = await started()
        plain = await document(engine, Operation.EMBEDDING, input="mill")
        packed = await document(engine, Operation.EMBEDDING, input="mill", encoding_format="base64")
        vector = struct.unpack("<64f", base64.b64decode(packed["data"][0]["embedding"]))
        assert vector == pytest.approx(plain["data"][0]["embedding"], rel=1e-6)

    @pytest.mark.parametrize("text", ["", "?!", "\0"])
    async def test_texts_without_words_have_vectors_too(self, text: str) -> None:
        reply = await document(await started(), Operation.EMBEDDING, input=text)
        assert sum(x * x for x in reply["data"][0]["embedding"]) == pytest.approx(1)

    async def test_token_ids_are_embedded_as_their_text(self) -> None:
        engine = await started()
        tokens = (await document(engine, Operation.TOKENIZE, prompt="the mill"))["tokens"]
        from_text = await document(engine, Operation.EMBEDDING, input="the mill")
        from_tokens = await document(engine, Operation.EMBEDDING, input=tokens)
        assert from_text["data"] == from_tokens["data"]

    async def test_a_text_beyond_the_context_is_refused_unless_it_may_be_cut(self) -> None:
        engine = await started(max_model_len=4)
        long = " water" * 9
        with pytest.raises(InvalidRequest) as refusal:
            await document(engine, Operation.EMBEDDING, input=long)
        assert refusal.value.code == "context_length_exceeded"
        cut = await document(engine, Operation.EMBEDDING, input=long, truncate_prompt_tokens=-1)
        assert cut["usage"]["prompt_tokens"] == 4

    async def test_documents_are_ranked_by_relevance_and_cut_to_top_n(self) -> None:
        documents = ["purple bicycles", "an old mill on a river", "the old mill by the river"]
        query = "the old mill by the river"
        engine = await started()
        reply = await document(engine, Operation.RERANK, query=query, documents=documents)
        top = await document(engine, Operation.RERANK, query=query, documents=documents, top_n=1)
        assert [result["index"] for result in reply["results"]] == [2, 1, 0]
        assert reply["results"][0]["document"] == {"text": documents[2]}
        assert reply["results"][0]["relevance_score"] == pytest.approx(1)
        assert top["results"] == reply["results"][:1]
        assert reply["usage"]["total_tokens"] > 0

    async def test_one_text_is_scored_against_many_and_many_pair_by_pair(self) -> None:
        engine = await started()
        spread = await document(engine, Operation.SCORE, text_1="mill", text_2=["mill", "bicycle"])
        paired = await document(engine, Operation.SCORE, text_1=["mill", "mill"], text_2=["mill", "bicycle"])
        assert spread["data"] == paired["data"]
        assert [item["index"] for item in spread["data"]] == [0, 1]
        assert spread["data"][0]["score"] > spread["data"][1]["score"]

    async def test_sides_of_different_length_are_refused(self) -> None:
        with pytest.raises(InvalidRequest):
            await document(await started(), Operation.SCORE, text_1=["a", "b"], text_2=["a", "b", "c"])


class TestTokens:
    async def test_detokenize_gives_the_tokenized_text_back(self) -> None:
        engine = await started(max_model_len=100)
        text = "The miller's wheel turns — 水車 🌊\n"
        tokenized = await document(engine, Operation.TOKENIZE, prompt=text)
        assert tokenized["count"] == len(tokenized["tokens"])
        assert tokenized["max_model_len"] == 100
        assert await document(engine, Operation.DETOKENIZE, tokens=tokenized["tokens"]) == {"prompt": text}

    async def test_messages_tokenize_to_what_a_chat_is_charged(self) -> None:
        engine = await started()
        tokenized = await document(engine, Operation.TOKENIZE, messages=HELLO)
        chat = await document(engine, Operation.CHAT, messages=HELLO)
        assert tokenized["count"] == chat["usage"]["prompt_tokens"]

    @pytest.mark.parametrize("token", [-1, 124 + 0xD800, 2**31 - 1])
    async def test_ids_of_no_token_are_refused(self, token: int) -> None:
        with pytest.raises(InvalidRequest):
            await document(await started(), Operation.DETOKENIZE, tokens=[token])

    @given(st.text())
    def test_any_text_survives_its_tokens(self, text: str) -> None:
        tokens = [token_id(piece) for piece in split(text)]
        assert join(tokens) == text
        assert all(0 <= token < 2**31 for token in tokens)


class TestSchema:
    @pytest.mark.parametrize(
        ("schema", "value"),
        [
            ({"type": "integer", "minimum": 7}, 7),
            ({"type": "integer", "exclusiveMinimum": 7}, 8),
            ({"type": "number", "maximum": -3}, -3),
            ({"type": "integer", "multipleOf": 5, "minimum": 11}, 15),
            ({"type": ["null", "string"]}, None),
            ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, True),
            ({"type": "array", "maxItems": 0}, []),
            ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}]}, [1, 2]),
            ({"allOf": [{"required": ["a"]}, {"properties": {"a": {"const": 1}}}]}, {"a": 1}),
            ({"type": "string", "maxLength": 2}, "wo"),
            ({"properties": {"a": {"const": 1}}}, {}),
            ({}, "word"),
        ],
    )
    def test_a_simple_schema_gets_the_simplest_value(self, schema: dict[str, Any], value: object) -> None:
        assert instance_of(schema, iter(["word"] * 9)) == value

    @pytest.mark.parametrize(
        "schema",
        [
            {"$ref": "#"},
            {"$ref": "#/$defs/missing"},
            {"type": "array", "minItems": 10**9},
            {"type": "string", "minLength": 10**9},
            {"$defs": {"a": {"required": ["x", "y"], "properties": {"x": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"},
        ],
    )
    def test_a_schema_that_asks_for_too_much_is_refused(self, schema: dict[str, Any]) -> None:
        with pytest.raises(InvalidRequest):
            instance_of(schema, iter(["word"] * 99_999))


class TestPace:
    async def test_tokens_come_at_the_stated_times(self) -> None:
        time = VirtualTime()
        engine = await started(time, ttft_ms=500, itl_ms=20)
        time.slept_seconds.clear()
        reply = await opened(engine, Operation.CHAT, messages=HELLO, max_tokens=3)
        for due in (0.5, 0.02, 0.02):
            item = asyncio.ensure_future(anext(reply.events))
            await time.until_asleep(1)
            time.advance(due)
            await item
        assert b"[DONE]" in await anext(reply.events)
        assert time.slept_seconds == [0.5, 0.02, 0.02]

    async def test_unary_replies_take_as_long_as_streams(self) -> None:
        time = VirtualTime()
        engine = await started(time, ttft_ms=500, itl_ms=20)
        reply = asyncio.ensure_future(document(engine, Operation.CHAT, messages=HELLO, max_tokens=2))
        await time.until_asleep(1)
        time.advance(0.5)
        await time.until_asleep(1)
        time.advance(0.02)
        await reply

    async def test_a_stream_without_gaps_gives_way_every_few_tokens(self) -> None:
        time = VirtualTime()
        engine = await started(time)
        await streamed(engine, Operation.CHAT, messages=HELLO, max_tokens=100)
        assert time.slept_seconds.count(0) >= 100 / 8

    async def test_replies_are_stamped_by_the_given_clock(self) -> None:
        engine = SyntheticEngine(EngineSpec(MODEL, "synthetic"), now=lambda: 1234.5)
        await engine.start()
        assert (await document(engine, Operation.RESPONSE, input="Where"))["created_at"] == 1234


async def running_stream(engine: SyntheticEngine, time: VirtualTime) -> Any:
    """A stream of which one token has been read."""
    reply = await opened(engine, Operation.CHAT, messages=HELLO, max_tokens=1000)
    first = asyncio.ensure_future(anext(reply.events))
    await time.until_asleep(1)
    time.advance(1)
    await first
    return reply.events


class TestSlots:
    async def test_the_waiting_run_in_the_order_in_which_they_came(self) -> None:
        time = VirtualTime()
        engine = await started(time, max_num_seqs=1, ttft_ms=1000)
        order: list[int] = []

        async def ask(number: int) -> None:
            await document(engine, Operation.CHAT, messages=HELLO, max_tokens=1)
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(ask(number))
            for waiting in (3, 2, 1, 0):
                await time.until_asleep(1)
                assert engine.stats().num_requests_running == 1
                assert engine.stats().num_requests_waiting == waiting
                time.advance(1)
        assert order == [0, 1, 2, 3]
        assert engine.stats().num_requests_running == 0

    async def test_closing_a_stream_stops_the_work(self) -> None:
        time = VirtualTime()
        engine = await started(time, ttft_ms=1000, itl_ms=1000)
        events = await running_stream(engine, time)
        await events.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(events)
        assert engine.stats().generation_tokens_total == 1
        assert engine.stats().num_requests_running == 0

    async def test_closing_a_stream_that_another_task_reads_ends_both(self) -> None:
        time = VirtualTime()
        engine = await started(time, ttft_ms=1000, itl_ms=1000)
        events = await running_stream(engine, time)
        pending = asyncio.ensure_future(anext(events))
        await time.until_asleep(1)
        await events.aclose()
        assert engine.stats().num_requests_running == 0
        time.advance(1)
        with pytest.raises(StopAsyncIteration):
            await pending
        assert engine.stats().generation_tokens_total == 1

    async def test_closing_a_stream_that_waits_gives_its_turn_to_the_next(self) -> None:
        time = VirtualTime()
        engine = await started(time, max_num_seqs=1, ttft_ms=1000)
        running = await running_stream(engine, time)
        waiting = (await opened(engine, Operation.CHAT, messages=HELLO)).events
        pending = asyncio.ensure_future(anext(waiting))
        await until(lambda: engine.stats().num_requests_waiting == 1)
        await waiting.aclose()
        with pytest.raises(StopAsyncIteration):
            await pending
        assert engine.stats().num_requests_waiting == 0
        await running.aclose()
        assert engine.stats().num_requests_running == 0

    async def test_a_stream_that_was_never_read_holds_nothing(self) -> None:
        engine = await started(max_num_seqs=1)
        reply = await opened(engine, Operation.CHAT, messages=HELLO)
        await reply.events.aclose()
        assert engine.stats() == EngineStats()
        await document(engine, Operation.CHAT, messages=HELLO)

    @pytest.mark.parametrize("operation", [Operation.CHAT, Operation.EMBEDDING])
    async def test_cancelling_a_request_gives_its_place_up(self, operation: Operation) -> None:
        time = VirtualTime()
        engine = await started(time, max_num_seqs=1, ttft_ms=1000)
        running, waiting = (
            asyncio.ensure_future(document(engine, operation, messages=HELLO, input="mill")) for _ in range(2)
        )
        await time.until_asleep(1)
        assert engine.stats().num_requests_waiting == 1
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        assert engine.stats().num_requests_waiting == 0
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        assert engine.stats() == EngineStats()

    @pytest.mark.parametrize("is_granted", [False, True])
    async def test_the_place_of_a_request_cancelled_at_that_moment_goes_to_the_next(self, is_granted: bool) -> None:
        time = VirtualTime()
        engine = await started(time, max_num_seqs=1, ttft_ms=1000)
        running = await running_stream(engine, time)
        second, third = (
            asyncio.ensure_future(document(engine, Operation.CHAT, messages=HELLO, max_tokens=1)) for _ in range(2)
        )
        await until(lambda: engine.stats().num_requests_waiting == 2)
        if is_granted:
            await running.aclose()
        second.cancel()
        await running.aclose()
        await time.until_asleep(1)
        time.advance(1)
        await third
        assert engine.stats().num_requests_running == 0

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_request_that_is_told_to_fail_does_so_after_so_many_tokens(self, stream: bool) -> None:
        engine = await started(fail_after_tokens=3)
        ask = streamed if stream else document
        with pytest.raises(EngineFault):
            await ask(engine, Operation.CHAT, messages=HELLO, max_tokens=3)
        assert engine.stats().generation_tokens_total == 3
        assert engine.stats().num_requests_running == 0

    async def test_totals_are_those_of_the_replies(self) -> None:
        engine = await started()
        usage = (await document(engine, Operation.CHAT, messages=HELLO, n=2))["usage"]
        embedded = (await document(engine, Operation.EMBEDDING, input="mill"))["usage"]
        stats = engine.stats()
        assert stats.prompt_tokens_total == usage["prompt_tokens"] + embedded["prompt_tokens"]
        assert stats.generation_tokens_total == usage["completion_tokens"] == 32

    @given(st.lists(st.sampled_from(["open", "read", "close", "cancel"]), max_size=40))
    def test_nothing_is_left_running_whatever_happened(self, actions: list[str]) -> None:
        asyncio.run(self._play(actions))

    async def _play(self, actions: list[str]) -> None:
        engine = await started(max_num_seqs=2)
        streams: list[Any] = []
        reads: dict[Any, asyncio.Future[bytes]] = {}
        for i, action in enumerate(actions):
            match action:
                case "open":
                    streams.append((await opened(engine, Operation.CHAT, messages=HELLO)).events)
                case "read" if streams:
                    begin_read(streams[i % len(streams)], reads)
                case "close" if streams:
                    await streams.pop(i % len(streams)).aclose()
                case "cancel" if reads:
                    list(reads.values())[i % len(reads)].cancel()
            if i % 3 == 0:
                await asyncio.sleep(0)
        for stream in streams:
            await stream.aclose()
        await asyncio.gather(*reads.values(), return_exceptions=True)
        stats = engine.stats()
        assert (stats.num_requests_running, stats.num_requests_waiting) == (0, 0)


def begin_read(stream: Any, reads: dict[Any, asyncio.Future[bytes]]) -> None:
    """Read a stream, unless it is being read: it has one reader at a time."""
    if stream not in reads or reads[stream].done():
        reads[stream] = asyncio.ensure_future(anext(stream))


class TestClose:
    async def test_a_closed_engine_ends_what_runs_and_what_waits(self) -> None:
        time = VirtualTime()
        engine = await started(time, max_num_seqs=1, ttft_ms=1000, itl_ms=1000)
        running = await running_stream(engine, time)
        waiting = asyncio.ensure_future(document(engine, Operation.CHAT, messages=HELLO))
        await until(lambda: engine.stats().num_requests_waiting == 1)
        await engine.close()
        await engine.close()
        with pytest.raises(EngineDown):
            await waiting
        pending = asyncio.ensure_future(anext(running))
        await time.until_asleep(1)
        time.advance(1)
        with pytest.raises(EngineDown):
            await pending
        with pytest.raises(EngineDown):
            await engine.check()
        assert engine.stats().num_requests_running == engine.stats().num_requests_waiting == 0

    async def test_a_running_engine_passes_its_check(self) -> None:
        await (await started()).check()


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until something holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never held")
