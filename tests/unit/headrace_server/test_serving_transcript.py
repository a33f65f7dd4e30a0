"""What a generation has said so far, and what it counts."""

from hypothesis import given
from hypothesis import strategies as st

from headrace_server.generation import Delta, Generation, TokenLogprob, ToolCallDelta
from headrace_server.serving.transcript import Said, Tally, ToolCall
from tests.fakes.generation import FakeDeltas, generation


def counted(num_choices: int, *prompt_lengths: int) -> Generation:
    return generation(FakeDeltas(), num_choices=num_choices, prompt_lengths=prompt_lengths)


def said(*deltas: Delta) -> Said:
    choice = Said(0)
    for delta in deltas:
        choice.add(delta)
    return choice


class TestSaid:
    """One choice, put together."""

    @given(parts=st.lists(st.tuples(st.text(), st.text())))
    def test_text_and_reasoning_are_their_parts_in_order(self, parts: list[tuple[str, str]]) -> None:
        choice = said(*(Delta(0, text, 1, reasoning=thought) for text, thought in parts))
        assert "".join(choice.text) == "".join(text for text, _ in parts)
        assert "".join(choice.reasoning) == "".join(thought for _, thought in parts)

    def test_the_last_delta_says_how_it_ended(self) -> None:
        choice = said(Delta(0, "a", 1), Delta(0, "b", 1, "stop", 7))
        assert (choice.finish_reason, choice.stop_reason) == ("stop", 7)
        assert said(Delta(0, "a", 1)).finish_reason is None

    def test_log_probabilities_that_nobody_asked_for_are_not_an_empty_list_of_them(self) -> None:
        assert said(Delta(0, "a", 1)).logprobs is None
        assert said(Delta(0, "", 0, logprobs=())).logprobs == []

    def test_log_probabilities_of_all_deltas_come_one_after_the_other(self) -> None:
        a, b, c = (TokenLogprob(token, -1.0, None) for token in "abc")
        assert said(Delta(0, "ab", 2, logprobs=(a, b)), Delta(0, "c", 1, logprobs=(c,))).logprobs == [a, b, c]

    def test_calls_whose_pieces_come_mixed_are_whole_and_in_their_order(self) -> None:
        choice = said(
            Delta(
                0, "", 1, tool_calls=(ToolCallDelta(1, "call-1", "shut", "{"), ToolCallDelta(0, "call-0", "open", ""))
            ),
            Delta(0, "", 1, tool_calls=(ToolCallDelta(0, None, None, '{"a'),)),
            Delta(0, "", 1, tool_calls=(ToolCallDelta(0, None, None, '":1}'), ToolCallDelta(1, None, None, "}"))),
        )
        assert choice.calls() == [ToolCall("call-0", "open", '{"a":1}'), ToolCall("call-1", "shut", "{}")]

    def test_a_name_that_comes_after_the_id_is_the_calls_name_too(self) -> None:
        pieces = (ToolCallDelta(0, "call-0", None, ""), ToolCallDelta(0, None, "open", "{}"))
        assert said(*(Delta(0, "", 1, tool_calls=(piece,)) for piece in pieces)).calls() == [
            ToolCall("call-0", "open", "{}")
        ]


class TestTally:
    """Usage."""

    def test_before_the_first_token_only_the_prompt_counts(self) -> None:
        assert Tally(counted(2, 5)).usage() == {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}

    @given(tokens=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=20))
    def test_the_answers_usage_is_that_of_its_choices_and_prompts(self, tokens: list[tuple[int, int]]) -> None:
        tally = Tally(counted(4, 5, 7))
        for index, num_tokens in tokens:
            tally.add(Delta(index, "", num_tokens))
        num_output = sum(num_tokens for _, num_tokens in tokens)
        assert tally.usage() == {
            "prompt_tokens": 12,
            "completion_tokens": num_output,
            "total_tokens": 12 + num_output,
        }
        assert sum(num_of(tally, index) for index in range(4)) == num_output

    def test_a_choice_is_counted_with_the_prompt_that_it_answers(self) -> None:
        tally = Tally(counted(4, 5, 7))
        assert [tally.usage_of(index)["prompt_tokens"] for index in range(4)] == [5, 5, 7, 7]
        tally.add(Delta(2, "", 3))
        assert tally.usage_of(2) == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}

    def test_reasoning_tokens_are_told_as_counted_last_and_summed_over_the_choices_that_count_them(self) -> None:
        tally = Tally(counted(3, 5))
        for index, num_reasoning in ((0, 1), (0, 4), (1, 2), (0, None)):
            tally.add(Delta(index, "", 1, num_reasoning_tokens=num_reasoning))
        assert tally.usage()["completion_tokens_details"] == {"reasoning_tokens": 6}
        assert tally.usage_of(0)["completion_tokens_details"] == {"reasoning_tokens": 4}
        assert "completion_tokens_details" not in tally.usage_of(2)

    def test_a_model_that_reasons_may_have_done_so_in_no_token(self) -> None:
        tally = Tally(counted(1, 5))
        assert "completion_tokens_details" not in tally.usage()
        tally.add(Delta(0, "a", 1, num_reasoning_tokens=0))
        assert tally.usage()["completion_tokens_details"] == {"reasoning_tokens": 0}


def num_of(tally: Tally, index: int) -> int:
    number = tally.usage_of(index)["completion_tokens"]
    assert isinstance(number, int)
    return number
