"""What is in a choice, chunk by chunk and whole."""

import json
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.domain import Operation
from headrace_server.generation import Delta, TokenLogprob, ToolCallDelta
from headrace_server.serving.transcript import Said
from headrace_server.serving.wire_formats import ChatFormat, CompletionFormat, WireFormat, wire_format

CHAT, COMPLETION = ChatFormat(), CompletionFormat()
SCORED = TokenLogprob("é", -0.5, (("é", -0.5), ("e", -1.5)))
UNSCORED = TokenLogprob("The", None, None)


def whole(*deltas: Delta, index: int = 0) -> Said:
    choice = Said(index)
    for delta in deltas:
        choice.add(delta)
    return choice


def ended(text: str = "", **fields: Any) -> Delta:
    return Delta(0, text, 1, "stop", **fields)


@pytest.mark.parametrize("operation", Operation)
def test_only_the_two_apis_of_plain_text_have_a_format(operation: Operation) -> None:
    kinds = {Operation.CHAT: ChatFormat, Operation.COMPLETION: CompletionFormat}
    if operation in kinds:
        assert type(wire_format(operation)) is kinds[operation]
    else:
        with pytest.raises(ValueError, match=operation.value):
            wire_format(operation)


def test_every_answer_has_a_format_of_its_own_because_it_counts_offsets() -> None:
    assert wire_format(Operation.COMPLETION) is not wire_format(Operation.COMPLETION)


@pytest.mark.parametrize("shape", [CHAT, COMPLETION], ids=["chat", "completion"])
@given(text=st.text(min_size=1))
def test_the_short_way_of_writing_plain_text_says_what_the_long_way_says(shape: WireFormat, text: str) -> None:
    before, after = shape.text_path
    short = b'{"index":7,' + before + json.dumps(text).encode() + after + b"}"
    assert json.loads(short) == shape.chunk(Delta(7, text, 1))


class TestChat:
    """`chat.completion` and its chunks."""

    def test_the_opening_tells_the_role_and_nothing_else(self) -> None:
        assert CHAT.opening(2, "user") == {
            "index": 2,
            "delta": {"role": "user", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }

    def test_a_chunk_mentions_only_what_it_brings(self) -> None:
        assert CHAT.chunk(Delta(0, "hi", 1))["delta"] == {"content": "hi"}
        assert CHAT.chunk(Delta(0, "", 1, reasoning="hm"))["delta"] == {"reasoning": "hm"}
        assert CHAT.chunk(ended())["delta"] == {}

    def test_the_stop_reason_stands_beside_the_finish_reason_and_nowhere_else(self) -> None:
        assert "stop_reason" not in CHAT.chunk(Delta(0, "hi", 1))
        for stop in ("END", 50256, None):
            chunk = CHAT.chunk(ended(stop_reason=stop))
            assert (chunk["finish_reason"], chunk["stop_reason"]) == ("stop", stop)

    def test_the_first_piece_of_a_tool_call_names_it_and_the_others_only_go_on(self) -> None:
        pieces = (ToolCallDelta(0, "call-1", "open_gate", ""), ToolCallDelta(1, None, None, '{"a'))
        assert CHAT.chunk(Delta(0, "", 1, tool_calls=pieces))["delta"] == {
            "tool_calls": [
                {"index": 0, "id": "call-1", "type": "function", "function": {"name": "open_gate", "arguments": ""}},
                {"index": 1, "function": {"arguments": '{"a'}},
            ]
        }

    def test_log_probabilities_show_the_bytes_of_every_token(self) -> None:
        chunk = CHAT.chunk(Delta(0, "é", 1, logprobs=(SCORED,)))
        assert chunk["logprobs"] == {
            "content": [
                {
                    "token": "é",
                    "logprob": -0.5,
                    "bytes": [0xC3, 0xA9],
                    "top_logprobs": [
                        {"token": "é", "logprob": -0.5, "bytes": [0xC3, 0xA9]},
                        {"token": "e", "logprob": -1.5, "bytes": [0x65]},
                    ],
                }
            ],
            "refusal": None,
        }

    def test_a_token_without_alternatives_has_an_empty_list_of_them(self) -> None:
        said = CHAT.document(whole(ended("The", logprobs=(UNSCORED,))), "assistant")
        assert said["logprobs"] == {
            "content": [{"token": "The", "logprob": None, "bytes": [84, 104, 101], "top_logprobs": []}],
            "refusal": None,
        }

    def test_a_document_has_the_whole_text_and_how_it_ended(self) -> None:
        parts = [Delta(3, "Hel", 1, reasoning="h"), Delta(3, "lo", 1, "stop", "END", reasoning="m")]
        assert CHAT.document(whole(*parts, index=3), "assistant") == {
            "index": 3,
            "message": {"role": "assistant", "content": "Hello", "refusal": None, "reasoning": "hm"},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": "END",
        }

    @pytest.mark.parametrize(("text", "content"), [("", None), ("Wait. ", "Wait. ")])
    def test_the_content_beside_tool_calls_is_the_text_or_null(self, text: str, content: str | None) -> None:
        call = ToolCallDelta(0, "call-1", "open_gate", "{}")
        message = CHAT.document(whole(ended(text, tool_calls=(call,))), "assistant")["message"]
        assert message == {
            "role": "assistant",
            "content": content,
            "refusal": None,
            "tool_calls": [{"id": "call-1", "type": "function", "function": {"name": "open_gate", "arguments": "{}"}}],
        }

    def test_an_answer_that_says_nothing_has_empty_content_and_no_empty_fields(self) -> None:
        message = CHAT.document(whole(ended()), "assistant")["message"]
        assert message == {"role": "assistant", "content": "", "refusal": None}


tokens = st.lists(st.lists(st.tuples(st.integers(0, 1), st.text(max_size=3)), max_size=4), max_size=6)


class TestCompletion:
    """`text_completion`, whole and in chunks."""

    def test_there_is_no_opening(self) -> None:
        shape: WireFormat = COMPLETION
        assert shape.opening(0, "assistant") is None

    def test_chunks_and_documents_look_alike(self) -> None:
        chunk = COMPLETION.chunk(Delta(1, "Hello", 2, "stop", "END"))
        assert chunk == COMPLETION.document(whole(Delta(1, "Hello", 2, "stop", "END"), index=1), "assistant")
        assert chunk == {"index": 1, "text": "Hello", "logprobs": None, "finish_reason": "stop", "stop_reason": "END"}

    def test_log_probabilities_are_four_lists_and_the_first_echoed_token_has_no_score(self) -> None:
        chunk = CompletionFormat().chunk(Delta(0, "Theé", 1, logprobs=(UNSCORED, SCORED)))
        assert chunk["logprobs"] == {
            "tokens": ["The", "é"],
            "token_logprobs": [None, -0.5],
            "top_logprobs": [None, {"é": -0.5, "e": -1.5}],
            "text_offset": [0, 3],
        }

    def test_offsets_count_tokens_whose_text_is_still_held_back(self) -> None:
        shape = CompletionFormat()
        held = shape.chunk(Delta(0, "", 1, logprobs=(TokenLogprob("EN", -1.0, None),)))
        shown = shape.chunk(Delta(0, "ENough", 1, logprobs=(TokenLogprob("ough", -1.0, None),)))
        assert [offsets_of(chunk) for chunk in (held, shown)] == [[0], [2]]

    @given(steps=tokens)
    def test_offsets_go_on_across_chunks_for_every_choice_on_its_own(self, steps: list[list[tuple[int, str]]]) -> None:
        shape = CompletionFormat()
        found: dict[int, list[int]] = {0: [], 1: []}
        for step in steps:
            for index in (0, 1):
                scores = tuple(TokenLogprob(text, -1.0, None) for choice, text in step if choice == index)
                found[index] += offsets_of(shape.chunk(Delta(index, "", len(scores), logprobs=scores)))
        for index, offsets in found.items():
            lengths = [len(text) for step in steps for choice, text in step if choice == index]
            assert offsets == [0, *accumulate(lengths)][: len(lengths)]


def offsets_of(choice: dict[str, object]) -> list[int]:
    logprobs = choice["logprobs"]
    assert isinstance(logprobs, dict)
    return list(logprobs["text_offset"])
