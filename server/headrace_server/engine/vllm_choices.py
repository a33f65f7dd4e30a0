"""One choice of a vLLM generation: `CompletionOutput` → `Delta`.

Three kinds: plain text, text with log probabilities, and text that vLLM's parsers split into reasoning, content and
tool calls, piece by piece or whole. Parsers cost more than all the rest of a token (they look at the whole text so
far), so they are made only where the model reasons or the request brings tools.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers.chat_utils import make_tool_call_id

from headrace_server.engine.vllm_errors import aborted
from headrace_server.engine.vllm_logprobs import token_logprobs
from headrace_server.errors import EngineFault
from headrace_server.generation import Delta, TokenLogprob, ToolCallDelta


class Choice(Protocol):
    """Turns the outputs of one choice into deltas, in order."""

    def delta(self, output: CompletionOutput, result: RequestOutput) -> Delta:
        """What this output adds. `result` is the output of the whole request that it came in."""


class PlainChoice:
    """Text and nothing else; the way of nearly all tokens."""

    def __init__(self, index: int) -> None:
        self._index = index

    def delta(self, output: CompletionOutput, result: RequestOutput) -> Delta:
        """See `Choice.delta`."""
        return Delta(self._index, output.text, len(output.token_ids), output.finish_reason, output.stop_reason)


@dataclass(frozen=True, slots=True)
class LogprobOptions:
    """How many alternatives are shown for a token, and what decodes them."""

    num_top: int
    tokenizer: Any = field(repr=False)

    def of(self, token_ids: Sequence[int], steps: Any) -> tuple[TokenLogprob, ...]:
        return token_logprobs(token_ids, steps, num_top=self.num_top, tokenizer=self.tokenizer)


class ScoredChoice:
    """Text with log probabilities, after the prompt where it is echoed.

    `echo` is the prompt's text, empty where it is not echoed; with `logprobs`, the prompt's tokens are scored too.
    """

    def __init__(self, index: int, *, logprobs: LogprobOptions | None, echo: str = "") -> None:
        self._index = index
        self._logprobs = logprobs
        self._echo = echo

    def delta(self, output: CompletionOutput, result: RequestOutput) -> Delta:
        """See `Choice.delta`."""
        echo, self._echo = self._echo, ""
        scores = None if self._logprobs is None else self._logprobs.of(output.token_ids, output.logprobs)
        if echo and self._logprobs is not None:
            prompt = self._logprobs.of(result.prompt_token_ids, result.prompt_logprobs)
            scores = (*prompt, *(scores or ()))
        return Delta(
            self._index,
            echo + output.text,
            len(output.token_ids),
            output.finish_reason,
            output.stop_reason,
            logprobs=scores,
        )


@dataclass(frozen=True, slots=True)
class ParsingRules:
    """What a request says about the parsing of its answer.

    Attributes:
        request: vLLM's form of the request, which its parsers read.
        make_parser: a parser for one choice.
        auto_tools: whether the model may call tools of its own accord.
        counts_reasoning: whether the model reasons.
        always_count: whether every delta says how many reasoning tokens there are.
        logprobs: None: not asked for.
    """

    request: ChatCompletionRequest
    make_parser: Callable[[], Any]
    auto_tools: bool
    counts_reasoning: bool
    always_count: bool
    logprobs: LogprobOptions | None

    @property
    def names_a_tool(self) -> bool:
        return not isinstance(self.request.tool_choice, str | None)

    def kept(self, calls: Iterable[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
        """The first call alone where the request does not want several."""
        one = self.request.parallel_tool_calls is False
        return tuple(call for call in calls if not one or call.index == 0)

    def scores(self, output: CompletionOutput) -> tuple[TokenLogprob, ...] | None:
        """None also where they would show the reasoning that the request does not want to see."""
        if self.logprobs is None or not self.request.include_reasoning:
            return None
        return self.logprobs.of(output.token_ids, output.logprobs)


class ParsedChoice:
    """A choice of a stream, parsed as it comes."""

    def __init__(self, index: int, rules: ParsingRules) -> None:
        self._index = index
        self._rules = rules
        self._parser = rules.make_parser()
        self._token_ids: list[int] = []
        self._has_called = False

    def delta(self, output: CompletionOutput, result: RequestOutput) -> Delta:
        """See `Choice.delta`."""
        ends = output.finish_reason is not None
        said = self._parser.parse_delta(
            delta_text=output.text,
            delta_token_ids=list(output.token_ids),
            request=self._rules.request,
            prompt_token_ids=result.prompt_token_ids,
            finished=ends,
        )
        pieces = () if said is None else tuple(_piece(call) for call in said.tool_calls)
        self._has_called = self._has_called or bool(pieces)
        return Delta(
            self._index,
            (said and said.content) or "",
            len(output.token_ids),
            self._finish_reason(output.finish_reason),
            output.stop_reason,
            reasoning=(said and said.reasoning) or "",
            tool_calls=self._rules.kept(pieces),
            logprobs=self._rules.scores(output),
            num_reasoning_tokens=self._num_reasoning_tokens(output, ends=ends),
        )

    def _finish_reason(self, reason: str | None) -> str | None:
        """`tool_calls`, unless the request named the tool: then it is `stop`, as in OpenAI's API."""
        calls = self._has_called and not self._rules.names_a_tool
        return "tool_calls" if calls and reason == "stop" else reason

    def _num_reasoning_tokens(self, output: CompletionOutput, *, ends: bool) -> int | None:
        if not self._rules.counts_reasoning:
            return None
        self._token_ids.extend(output.token_ids)
        if not ends and not self._rules.always_count:
            return None
        return int(self._parser.count_reasoning_tokens(tuple(self._token_ids)))


class WholeChoice:
    """A choice that comes in one piece, parsed when it is there."""

    def __init__(self, index: int, rules: ParsingRules) -> None:
        self._index = index
        self._rules = rules
        self._parser = rules.make_parser()

    def delta(self, output: CompletionOutput, result: RequestOutput) -> Delta:
        """See `Choice.delta`."""
        rules = self._rules
        self._parser.set_prompt_token_ids(result.prompt_token_ids)
        reasoning, content, calls = self._parser.parse(
            output.text, rules.request, enable_auto_tools=rules.auto_tools, model_output_token_ids=output.token_ids
        )
        pieces = tuple(_whole(number, call) for number, call in enumerate(calls or ()))
        num_reasoning = self._parser.count_reasoning_tokens(output.token_ids) if rules.counts_reasoning else None
        return Delta(
            self._index,
            content or "",
            len(output.token_ids),
            self._finish_reason(output.finish_reason, has_called=bool(pieces)),
            output.stop_reason,
            reasoning=(rules.request.include_reasoning and reasoning) or "",
            tool_calls=rules.kept(pieces),
            logprobs=rules.scores(output),
            num_reasoning_tokens=num_reasoning,
        )

    def _finish_reason(self, reason: str | None, *, has_called: bool) -> str | None:
        """As vLLM: a required call that was cut short says so, one of the model's own accord is a call."""
        if self._rules.request.tool_choice == "required":
            return "tool_calls" if reason == "stop" else reason
        return "tool_calls" if has_called and not self._rules.names_a_tool else reason


def check_finish(output: CompletionOutput) -> None:
    """Raise EngineFault where vLLM ended a choice without finishing it."""
    match output.finish_reason:
        case "abort":
            raise aborted()
        case "error":
            raise EngineFault("the engine failed on this request")
        case _:
            pass


def _piece(call: Any) -> ToolCallDelta:
    """vLLM's `DeltaToolCall`."""
    function = call.function
    name = function.name if function else None
    return ToolCallDelta(call.index, call.id, name, (function and function.arguments) or "")


def _whole(index: int, call: Any) -> ToolCallDelta:
    """vLLM's `FunctionCall`."""
    return ToolCallDelta(index, call.id or make_tool_call_id(), call.name, call.arguments)
