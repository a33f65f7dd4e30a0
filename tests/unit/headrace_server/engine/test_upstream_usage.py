"""What an upstream server's answers come to on the seat: every token once, as early as it is known."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest

from headrace_server.domain import Demand, EngineRequest, Operation
from headrace_server.engine.upstream_payload import asking_for_usage, demand_of, wants_usage
from headrace_server.engine.upstream_usage import UpstreamAccount
from tests.fakes.engine_requests import OpenSeat, engine_request

DONE = b"data: [DONE]\n\n"


class Account:
    """An account with its seat and with what else hears of it."""

    def __init__(self, operation: Operation = Operation.CHAT, *, hides_usage: bool = True) -> None:
        self.seat = OpenSeat()
        self.prompts: list[int] = []
        self.outputs: list[int] = []
        heard: dict[str, Callable[[int], None]] = {"on_prompt": self.prompts.append, "on_output": self.outputs.append}
        self.account = UpstreamAccount(self.seat, operation, hides_usage=hides_usage, **heard)

    def stream(self, events: Iterable[bytes]) -> bytes:
        return b"".join(self.account.passed(event) for event in events)

    @property
    def heard(self) -> tuple[list[tuple[int, int]], int]:
        assert sum(self.prompts) == sum(map(sum, self.seat.prompts))
        assert sum(self.outputs) == self.seat.num_generated
        return self.seat.prompts, self.seat.num_generated


def data(document: object, event: str = "") -> bytes:
    name = b"event: " + event.encode() + b"\n" if event else b""
    return name + b"data: " + msgspec.json.encode(document) + b"\n\n"


def chunk(delta: dict[str, Any], **more: object) -> bytes:
    return data({"choices": [{"index": 0, "delta": delta}], **more})


def usage(num_prompt: int, num_output: int, num_cached: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


CHAT_STREAM = [chunk({"role": "assistant", "content": ""}), chunk({"content": "the"}), chunk({"content": " mill"})]


class TestStreams:
    def test_each_event_with_text_is_a_token_until_the_usage_says_how_many_there_were(self) -> None:
        account = Account()
        account.stream(CHAT_STREAM)
        assert account.heard == ([], 2)
        account.stream([data({"choices": [], "usage": usage(9, 5)}), DONE])
        assert account.heard == ([(9, 0)], 5)

    def test_a_stream_that_never_tells_its_usage_counts_its_events(self) -> None:
        account = Account()
        assert account.stream([*CHAT_STREAM, DONE]) == b"".join([*CHAT_STREAM, DONE])
        assert account.heard == ([], 2)

    def test_what_has_been_counted_is_never_taken_back(self) -> None:
        account = Account()
        account.stream([*CHAT_STREAM, data({"choices": [], "usage": usage(9, 1)})])
        assert account.heard == ([(9, 0)], 2)

    def test_usage_in_every_event_is_counted_once(self) -> None:
        account = Account()
        account.stream(chunk({"content": "x"}, usage=usage(9, 3 * n, 4)) for n in (1, 2, 3))
        assert account.heard == ([(5, 4)], 9)

    @pytest.mark.parametrize("delta", [{"reasoning": "so"}, {"reasoning_content": "so"}])
    def test_reasoning_is_output_too(self, delta: dict[str, Any]) -> None:
        account = Account()
        account.stream([chunk(delta)])
        assert account.heard == ([], 1)

    def test_a_tool_calls_arguments_are_output_too(self) -> None:
        account = Account()
        account.stream([chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]})])
        assert account.heard == ([], 1)

    def test_what_an_answer_quotes_is_no_event(self) -> None:
        account = Account()
        account.stream([chunk({"content": '"content": "x", "usage": {"prompt_tokens": 5}'})])
        assert account.heard == ([], 1)

    def test_many_frames_in_one_block_are_counted_each(self) -> None:
        account = Account()
        account.stream([b"".join([*CHAT_STREAM, data({"choices": [], "usage": usage(1, 2)}), DONE])])
        assert account.heard == ([(1, 0)], 2)

    def test_a_text_completions_events_count(self) -> None:
        account = Account(Operation.COMPLETION)
        account.stream([data({"choices": [{"text": text}]}) for text in ("", "a", "b")])
        assert account.heard == ([], 2)

    def test_a_messages_prompt_is_told_first_and_its_output_last(self) -> None:
        account = Account(Operation.MESSAGE)
        start = {"type": "message_start", "message": {"usage": {"input_tokens": 7, "cache_read_input_tokens": 3}}}
        account.stream([data(start, "message_start")])
        assert account.heard == ([(7, 3)], 0)
        piece = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}
        end = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 4}}
        account.stream([data(piece, "content_block_delta"), data(end, "message_delta")])
        assert account.heard == ([(7, 3)], 4)

    def test_a_responses_last_event_tells_all(self) -> None:
        account = Account(Operation.RESPONSE)
        piece = {"type": "response.output_text.delta", "delta": "hi"}
        done = {"type": "response.output_text.done", "text": "hi there"}
        told = {"input_tokens": 8, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 2}}
        account.stream([data(piece), data(done)])
        assert account.heard == ([], 1)
        account.stream([data({"type": "response.completed", "response": {"usage": told}})])
        assert account.heard == ([(6, 2)], 3)


class TestHiding:
    @pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
    def test_an_event_that_nobody_asked_for_is_not_passed_on_and_everything_else_is(self, end: bytes) -> None:
        told = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}' + end
        before, after = b'data: {"choices":[{"delta":{}}],"usage":null}' + end, b"data: [DONE]" + end
        assert Account().stream([before + told + after]) == before + after
        assert Account(hides_usage=False).stream([before + told + after]) == before + told + after

    def test_usage_beside_text_is_passed_on(self) -> None:
        told = chunk({"content": "x"}, usage=usage(1, 1))
        assert Account().stream([told]) == told


class TestDocuments:
    @pytest.mark.parametrize(
        ("told", "heard"),
        [
            (usage(10, 4, 6), ([(4, 6)], 4)),
            ({"input_tokens": 10, "output_tokens": 20}, ([(10, 0)], 20)),
            ({"prompt_tokens": 100, "total_tokens": 100}, ([(100, 0)], 0)),
            (None, ([], 0)),
            ("much", ([], 0)),
            ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}}, ([(0, 3)], 0)),
        ],
    )
    def test_an_answers_usage_is_counted(self, told: object, heard: object) -> None:
        account = Account()
        account.account.document(msgspec.json.encode({"id": "x", "usage": told}))
        assert account.heard == heard

    def test_operations_that_have_no_streams_are_counted_too(self) -> None:
        account = Account(Operation.EMBEDDING)
        account.account.document(msgspec.json.encode({"usage": {"prompt_tokens": 6, "total_tokens": 6}}))
        assert account.heard == ([(6, 0)], 0)


class TestPayloads:
    @pytest.mark.parametrize("operation", [Operation.CHAT, Operation.COMPLETION])
    def test_streams_are_asked_for_their_usage_and_keep_their_other_options(self, operation: Operation) -> None:
        plain, given = streaming(operation), streaming(operation, stream_options={"x": 1, "include_usage": False})
        assert asking_for_usage(plain)["stream_options"] == {"include_usage": True}
        assert asking_for_usage(given)["stream_options"] == {"x": 1, "include_usage": True}
        assert not wants_usage(plain.payload)
        assert not wants_usage(given.payload)
        assert wants_usage({"stream_options": {"include_usage": True}})

    @pytest.mark.parametrize("operation", [Operation.MESSAGE, Operation.RESPONSE])
    def test_streams_that_tell_anyway_are_not_asked(self, operation: Operation) -> None:
        assert "stream_options" not in asking_for_usage(streaming(operation))

    def test_an_answer_in_one_piece_is_not_asked(self) -> None:
        assert "stream_options" not in asking_for_usage(engine_request(Operation.CHAT, {}))

    @pytest.mark.parametrize(
        ("payload", "demand"),
        [
            ({}, Demand(None, None, 1)),
            ({"max_tokens": 5}, Demand(None, 5, 1)),
            ({"max_completion_tokens": 3, "max_tokens": 5, "n": 2}, Demand(None, 6, 2)),
            ({"prompt": "text", "max_tokens": 5}, Demand(None, 5, 1)),
            ({"prompt": [1, 2, 3], "max_tokens": 5}, Demand(None, 5, 1)),
            ({"prompt": ["a", "b", "c"], "max_tokens": 5, "n": 2}, Demand(None, 30, 6)),
            ({"prompt": [[1, 2], [3]]}, Demand(None, None, 2)),
            ({"n": None, "prompt": []}, Demand(None, None, 1)),
        ],
    )
    def test_the_demand_is_over_all_choices_of_all_prompts(self, payload: dict[str, object], demand: Demand) -> None:
        assert demand_of(payload) == demand


def streaming(operation: Operation, **payload: object) -> EngineRequest:
    return engine_request(operation, payload, stream=True)
