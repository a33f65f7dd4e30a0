"""vLLM's outputs → deltas, with plain stand-ins for what vLLM hands over. Importing it takes 10 s; no engine starts."""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from headrace_server.errors import EngineFault
from headrace_server.generation import Delta, TokenLogprob, ToolCallDelta

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),  # importing vLLM warns about itself
]


@pytest.fixture(scope="module")
def choices() -> Any:
    """`headrace_server.engine.vllm_choices`."""
    return importlib.import_module("headrace_server.engine.vllm_choices")


@pytest.fixture(scope="module")
def token_logprobs(choices: Any) -> Any:
    """`headrace_server.engine.vllm_logprobs.token_logprobs`."""
    return importlib.import_module("headrace_server.engine.vllm_logprobs").token_logprobs


@dataclass
class Output:
    """vLLM's `CompletionOutput`, as far as it is read."""

    text: str = ""
    token_ids: Sequence[int] = (1,)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: Any = None


@dataclass
class Result:
    """vLLM's `RequestOutput`, as far as it is read."""

    prompt_token_ids: list[int] = field(default_factory=lambda: [11, 12])
    prompt_logprobs: Any = None


@dataclass
class Logprob:
    """vLLM's `Logprob`."""

    logprob: float
    decoded_token: str | None = None


class Tokenizer:
    """Decodes every token to its number."""

    def decode(self, token_ids: list[int]) -> str:
        return "".join(f"<{token_id}>" for token_id in token_ids)


TOKENIZER = Tokenizer()


class TestPlainChoice:
    """Text and nothing else."""

    def test_a_delta_is_what_the_output_says(self, choices: Any) -> None:
        choice = choices.PlainChoice(3)
        assert choice.delta(Output("hi", (1, 2)), Result()) == Delta(3, "hi", 2)
        assert choice.delta(Output("", (1,), "stop", "END"), Result()) == Delta(3, "", 1, "stop", "END")


class TestTokenLogprobs:
    """Scores of tokens."""

    def scored(self, token_logprobs: Any, *steps: Any, num_top: int = 2) -> Any:
        return token_logprobs(range(1, len(steps) + 1), steps, num_top=num_top, tokenizer=TOKENIZER)

    def test_every_token_has_its_score_and_the_first_of_the_others(self, token_logprobs: Any) -> None:
        step = {1: Logprob(-2.0, "a"), 7: Logprob(-0.5, "b"), 8: Logprob(-3.0, "c")}
        assert self.scored(token_logprobs, step) == (TokenLogprob("a", -2.0, (("a", -2.0), ("b", -0.5))),)
        assert self.scored(token_logprobs, step, num_top=0) == (TokenLogprob("a", -2.0, ()),)

    def test_a_text_that_vllm_leaves_out_is_decoded_and_an_empty_one_is_kept(self, token_logprobs: Any) -> None:
        step = {1: Logprob(-2.0, None), 7: Logprob(-0.5, "")}
        assert self.scored(token_logprobs, step) == (TokenLogprob("<1>", -2.0, (("<1>", -2.0), ("", -0.5))),)

    @pytest.mark.parametrize("step", [None, {}, {9: Logprob(-1.0, "z")}])
    def test_a_token_that_was_not_scored_has_text_and_nothing_else(self, token_logprobs: Any, step: Any) -> None:
        assert self.scored(token_logprobs, step) == (TokenLogprob("<1>", None, None),)

    def test_a_probability_of_zero_is_a_number_that_json_has(self, token_logprobs: Any) -> None:
        step = {1: Logprob(float("-inf"), "a")}
        assert self.scored(token_logprobs, step) == (TokenLogprob("a", -9999.0, (("a", -9999.0),)),)

    def test_tokens_and_scores_must_be_as_many(self, token_logprobs: Any) -> None:
        with pytest.raises(ValueError, match="zip"):
            token_logprobs([1, 2], [None], num_top=1, tokenizer=TOKENIZER)


class TestScoredChoice:
    """Text with log probabilities, or after its prompt."""

    def test_log_probabilities_come_with_their_text(self, choices: Any) -> None:
        choice = choices.ScoredChoice(1, logprobs=choices.LogprobOptions(1, TOKENIZER))
        output = Output("ab", (1, 2), "stop", 2, [{1: Logprob(-1.0, "a")}, {2: Logprob(-2.0, "b")}])
        scores = (TokenLogprob("a", -1.0, (("a", -1.0),)), TokenLogprob("b", -2.0, (("b", -2.0),)))
        assert choice.delta(output, Result()) == Delta(1, "ab", 2, "stop", 2, logprobs=scores)

    def test_an_echo_goes_before_the_first_text_and_counts_no_tokens(self, choices: Any) -> None:
        choice = choices.ScoredChoice(0, logprobs=None, echo="Say: ")
        assert choice.delta(Output("a"), Result()) == Delta(0, "Say: a", 1)
        assert choice.delta(Output("b"), Result()) == Delta(0, "b", 1)

    def test_an_echoed_prompt_is_scored_too_but_for_its_first_token(self, choices: Any) -> None:
        choice = choices.ScoredChoice(0, logprobs=choices.LogprobOptions(0, TOKENIZER), echo="Say: ")
        result = Result([11, 12], [None, {12: Logprob(-3.0, ": ")}])
        output = Output("a", (1,), logprobs=[{1: Logprob(-1.0, "a")}])
        first, second = choice.delta(output, result), choice.delta(output, result)
        assert [(score.token, score.logprob) for score in first.logprobs] == [("<11>", None), (": ", -3.0), ("a", -1.0)]
        assert (first.text, first.num_tokens) == ("Say: a", 1)
        assert [score.token for score in second.logprobs] == ["a"]


class Parser:
    """vLLM's parser: says what the test scripted, and remembers what it was shown. A reasoning token is an odd one."""

    def __init__(self, *said: Any) -> None:
        self.shown: list[dict[str, Any]] = []
        self.prompt_token_ids: Any = None
        self._said = list(said)

    def parse_delta(self, **shown: Any) -> Any:
        self.shown.append(shown)
        return self._said.pop(0)

    def set_prompt_token_ids(self, token_ids: list[int]) -> None:
        self.prompt_token_ids = token_ids

    def parse(self, text: str, request: Any, **shown: Any) -> Any:
        self.shown.append({"text": text, "request": request, **shown})
        return self._said.pop(0)

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        return sum(token_id % 2 for token_id in token_ids)


def piece(index: int, *, id: str | None = None, name: str | None = None, arguments: str | None = None) -> Any:
    """vLLM's `DeltaToolCall`."""
    return SimpleNamespace(index=index, id=id, function=SimpleNamespace(name=name, arguments=arguments))


def message(content: str | None = None, reasoning: str | None = None, *calls: Any) -> Any:
    """vLLM's `DeltaMessage`."""
    return SimpleNamespace(content=content, reasoning=reasoning, tool_calls=list(calls))


def called(name: str, *, id: str | None = "c") -> Any:
    """vLLM's `FunctionCall`."""
    return SimpleNamespace(id=id, name=name, arguments="{}")


NAMED = SimpleNamespace(type="function")


def rules(choices: Any, parser: Parser, *, asked: dict[str, Any] | None = None, **fields: Any) -> Any:
    """Rules of a request that lets the model call tools, changed by `asked` and `fields`."""
    request = {"tool_choice": "auto", "parallel_tool_calls": True, "include_reasoning": True, **(asked or {})}
    options = {"auto_tools": True, "counts_reasoning": False, "always_count": False, "logprobs": None, **fields}
    return choices.ParsingRules(request=SimpleNamespace(**request), make_parser=lambda: parser, **options)


class TestParsedChoice:
    """A stream's choice, parsed as it comes."""

    def test_the_parser_sees_every_output_and_which_is_the_last(self, choices: Any) -> None:
        parser = Parser(None, None)
        choice = choices.ParsedChoice(0, agreed := rules(choices, parser))
        choice.delta(Output("a", (1, 2)), Result([11]))
        choice.delta(Output("b", (3,), "length"), Result([11]))
        shown = {"request": agreed.request, "prompt_token_ids": [11]}
        assert parser.shown == [
            {"delta_text": "a", "delta_token_ids": [1, 2], "finished": False, **shown},
            {"delta_text": "b", "delta_token_ids": [3], "finished": True, **shown},
        ]

    def test_what_it_holds_back_is_counted_and_shows_nothing(self, choices: Any) -> None:
        choice = choices.ParsedChoice(2, rules(choices, Parser(None, message())))
        assert choice.delta(Output("<tool", (1, 2)), Result()) == Delta(2, "", 2)
        assert choice.delta(Output("_call>"), Result()) == Delta(2, "", 1)

    def test_content_and_reasoning_stay_apart(self, choices: Any) -> None:
        choice = choices.ParsedChoice(0, rules(choices, Parser(message("a", "hm"))))
        assert choice.delta(Output("hm</think>a"), Result()) == Delta(0, "a", 1, reasoning="hm")

    def test_calls_come_in_pieces_and_change_what_the_end_is_called(self, choices: Any) -> None:
        first = message(None, None, piece(0, id="c0", name="open"), piece(1, id="c1", name="shut", arguments="{"))
        choice = choices.ParsedChoice(0, rules(choices, Parser(first, message("x"), None)))
        assert choice.delta(Output(), Result()).tool_calls == (
            ToolCallDelta(0, "c0", "open", ""),
            ToolCallDelta(1, "c1", "shut", "{"),
        )
        assert choice.delta(Output("x"), Result()).finish_reason is None
        assert choice.delta(Output("", (1,), "stop"), Result()).finish_reason == "tool_calls"

    def test_a_piece_without_a_function_says_nothing(self, choices: Any) -> None:
        empty = SimpleNamespace(index=0, id="c0", function=None)
        choice = choices.ParsedChoice(0, rules(choices, Parser(message(None, None, empty))))
        assert choice.delta(Output(), Result()).tool_calls == (ToolCallDelta(0, "c0", None, ""),)

    @pytest.mark.parametrize(
        ("tool_choice", "calls", "reason", "shown"),
        [
            ("auto", True, "stop", "tool_calls"),
            ("auto", False, "stop", "stop"),
            ("auto", True, "length", "length"),
            ("required", True, "stop", "tool_calls"),
            (None, True, "stop", "tool_calls"),
            (NAMED, True, "stop", "stop"),
        ],
    )
    def test_a_call_that_the_request_did_not_name_ends_in_tool_calls(
        self, choices: Any, tool_choice: Any, calls: bool, reason: str, shown: str
    ) -> None:
        said = message(None, None, piece(0, id="c", name="open")) if calls else message("a")
        agreed = rules(choices, Parser(said), asked={"tool_choice": tool_choice})
        assert choices.ParsedChoice(0, agreed).delta(Output("", (1,), reason), Result()).finish_reason == shown

    def test_only_the_first_call_is_kept_where_the_request_wants_one(self, choices: Any) -> None:
        parser = Parser(message(None, None, piece(0, id="c0", name="open"), piece(1, id="c1", name="shut")))
        choice = choices.ParsedChoice(0, rules(choices, parser, asked={"parallel_tool_calls": False}))
        assert [call.index for call in choice.delta(Output(), Result()).tool_calls] == [0]

    @pytest.mark.parametrize(("always", "counts"), [(False, [None, None, 3]), (True, [1, 2, 3])])
    def test_reasoning_tokens_are_counted_over_the_whole_choice(
        self, choices: Any, always: bool, counts: list[int | None]
    ) -> None:
        agreed = rules(choices, Parser(None, None, None), counts_reasoning=True, always_count=always)
        choice = choices.ParsedChoice(0, agreed)
        outputs = [Output("", (1, 2)), Output("", (3,)), Output("", (4, 5), "stop")]
        assert [choice.delta(output, Result()).num_reasoning_tokens for output in outputs] == counts

    def test_a_model_that_does_not_reason_counts_nothing(self, choices: Any) -> None:
        choice = choices.ParsedChoice(0, rules(choices, Parser(None), always_count=True))
        assert choice.delta(Output("", (1,), "stop"), Result()).num_reasoning_tokens is None

    @pytest.mark.parametrize("kind", ["ParsedChoice", "WholeChoice"])
    @pytest.mark.parametrize("shown", [True, False])
    def test_log_probabilities_never_show_reasoning_that_is_hidden(self, choices: Any, kind: str, shown: bool) -> None:
        parser = Parser(("", "a", None) if kind == "WholeChoice" else message("a"))
        options = choices.LogprobOptions(0, TOKENIZER)
        agreed = rules(choices, parser, asked={"include_reasoning": shown}, logprobs=options)
        delta = getattr(choices, kind)(0, agreed).delta(Output("a", (1,), logprobs=[{1: Logprob(-1.0, "a")}]), Result())
        assert delta.logprobs == ((TokenLogprob("a", -1.0, ()),) if shown else None)


class TestWholeChoice:
    """A choice in one piece."""

    def test_the_parser_sees_the_prompt_and_the_whole_output(self, choices: Any) -> None:
        parser = Parser((None, "a", None))
        agreed = rules(choices, parser)
        delta = choices.WholeChoice(1, agreed).delta(Output("a", (1, 2), "stop", 7), Result([11]))
        assert delta == Delta(1, "a", 2, "stop", 7)
        assert parser.prompt_token_ids == [11]
        assert parser.shown == [
            {"text": "a", "request": agreed.request, "enable_auto_tools": True, "model_output_token_ids": (1, 2)}
        ]

    @pytest.mark.parametrize("shown", [True, False])
    def test_reasoning_is_told_where_the_request_wants_it_and_counted_always(self, choices: Any, shown: bool) -> None:
        agreed = rules(choices, Parser(("hm", "a", None)), asked={"include_reasoning": shown}, counts_reasoning=True)
        delta = choices.WholeChoice(0, agreed).delta(Output("", (1, 2, 3), "stop"), Result())
        assert (delta.reasoning, delta.num_reasoning_tokens) == ("hm" if shown else "", 2)

    def test_calls_are_numbered_and_each_has_an_id(self, choices: Any) -> None:
        parser = Parser((None, None, [called("open"), called("shut", id=None)]))
        delta = choices.WholeChoice(0, rules(choices, parser)).delta(Output("", (1,), "stop"), Result())
        first, second = delta.tool_calls
        assert first == ToolCallDelta(0, "c", "open", "{}")
        assert (second.index, second.name) == (1, "shut")
        assert second.id
        assert (delta.text, delta.finish_reason) == ("", "tool_calls")

    def test_only_the_first_call_is_kept_where_the_request_wants_one(self, choices: Any) -> None:
        parser = Parser((None, None, [called("open"), called("shut")]))
        agreed = rules(choices, parser, asked={"parallel_tool_calls": False})
        delta = choices.WholeChoice(0, agreed).delta(Output("", (1,), "stop"), Result())
        assert [call.name for call in delta.tool_calls] == ["open"]

    @pytest.mark.parametrize(
        ("tool_choice", "calls", "reason", "shown"),
        [
            ("auto", True, "stop", "tool_calls"),
            ("auto", True, "length", "tool_calls"),
            ("auto", False, "stop", "stop"),
            (None, True, "stop", "tool_calls"),
            ("required", True, "stop", "tool_calls"),
            ("required", True, "length", "length"),
            (NAMED, True, "stop", "stop"),
        ],
    )
    def test_a_call_that_the_request_did_not_name_ends_in_tool_calls_unless_a_required_one_was_cut(
        self, choices: Any, tool_choice: Any, calls: bool, reason: str, shown: str
    ) -> None:
        parser = Parser((None, None, [called("open")] if calls else None))
        agreed = rules(choices, parser, asked={"tool_choice": tool_choice})
        assert choices.WholeChoice(0, agreed).delta(Output("", (1,), reason), Result()).finish_reason == shown


@pytest.mark.parametrize(("reason", "code"), [("abort", "engine_aborted"), ("error", "engine_fault")])
def test_an_end_that_is_no_answer_is_a_fault_of_its_own_each_time(choices: Any, reason: str, code: str) -> None:
    faults = []
    for _ in range(2):
        with pytest.raises(EngineFault) as caught:
            choices.check_finish(Output(finish_reason=reason))
        faults.append(caught.value)
    assert [fault.code for fault in faults] == [code] * 2
    assert faults[0] is not faults[1]


@pytest.mark.parametrize("reason", [None, "stop", "length"])
def test_every_other_end_is_an_answer(choices: Any, reason: str | None) -> None:
    choices.check_finish(Output(finish_reason=reason))
