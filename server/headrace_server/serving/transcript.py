"""What a generation has said so far, choice by choice; the numbers in it are the usage of the answer."""

from dataclasses import dataclass, field

from headrace_server.generation import Delta, Generation, TokenLogprob, ToolCallDelta


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole tool call; `arguments` is JSON, as far as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Said:
    """One choice, put together from its deltas."""

    index: int
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: dict[int, list[ToolCallDelta]] = field(default_factory=dict)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        """Append what a delta says."""
        self.text.append(delta.text)
        self.reasoning.append(delta.reasoning)
        for piece in delta.tool_calls:
            self.tool_calls.setdefault(piece.index, []).append(piece)
        if delta.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs.extend(delta.logprobs)
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason

    def calls(self) -> list[ToolCall]:
        """The tool calls in their order."""
        return [_call(pieces) for _, pieces in sorted(self.tool_calls.items())]


def _call(pieces: list[ToolCallDelta]) -> ToolCall:
    return ToolCall(
        id=next((piece.id for piece in pieces if piece.id), ""),
        name=next((piece.name for piece in pieces if piece.name), ""),
        arguments="".join(piece.arguments for piece in pieces),
    )


class Tally:
    """Tokens of a generation as they come."""

    def __init__(self, generation: Generation) -> None:
        self._prompt_lengths = generation.prompt_lengths
        self._choices_per_prompt = max(1, generation.num_choices // len(generation.prompt_lengths))
        self._output = [0] * generation.num_choices
        self._reasoning: list[int | None] = [None] * generation.num_choices

    def add(self, delta: Delta) -> None:
        """Count a delta's tokens."""
        self._output[delta.index] += delta.num_tokens
        if delta.num_reasoning_tokens is not None:
            self._reasoning[delta.index] = delta.num_reasoning_tokens

    def usage(self) -> dict[str, object]:
        """OpenAI's usage of the whole answer."""
        known = [count for count in self._reasoning if count is not None]
        return _usage(sum(self._prompt_lengths), sum(self._output), sum(known) if known else None)

    def usage_of(self, index: int) -> dict[str, object]:
        """OpenAI's usage of one choice and its prompt."""
        prompt = self._prompt_lengths[index // self._choices_per_prompt]
        return _usage(prompt, self._output[index], self._reasoning[index])


def _usage(num_prompt: int, num_output: int, num_reasoning: int | None) -> dict[str, object]:
    usage: dict[str, object] = {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
    }
    if num_reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": num_reasoning}
    return usage
