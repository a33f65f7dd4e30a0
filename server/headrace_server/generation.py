"""Text on its way from an engine to `serving`: deltas, and the generation that they belong to.

An engine that generates text speaks these values and no wire format: `serving` writes them as OpenAI's chunks or as one
document. Made once per token, so they are msgspec structs, which take 0.1 µs to make.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec


class TokenLogprob(NamedTuple):
    """The natural-log probability of a token, and of the most likely ones in its place.

    `logprob` is None for a token that nothing came before (the first of an echoed prompt).
    """

    token: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] | None


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call; `index` says of which one. The first piece has the id and the name."""

    index: int
    id: str | None
    name: str | None
    arguments: str


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What one or more engine steps added to one choice.

    Attributes:
        index: of the choice.
        text: the answer's next characters; empty while a character is incomplete, or where a parser holds them back.
        num_tokens: output tokens that this delta stands for.
        finish_reason: OpenAI's word for why the choice ends; None: it goes on.
        stop_reason: the stop string or token id that ended it, where one did.
        reasoning: the next characters of the model's reasoning.
        tool_calls: pieces of tool calls.
        logprobs: one for each token, where they were asked for.
        num_reasoning_tokens: of the whole choice so far; None where the model does not reason.
    """

    index: int
    text: str
    num_tokens: int
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    num_reasoning_tokens: int | None = None


class DeltaStream(Protocol):
    """Deltas in the order in which they come, those of one engine step together.

    Nothing is generated before the first item is asked for. The receiver iterates to the end or calls `aclose()`,
    which aborts the generation. A receiver that falls behind gets what has come meanwhile as one longer delta per
    choice. Failures are raised as `RequestError`; a stream that ends without raising has finished every choice.
    """

    def __aiter__(self) -> AsyncIterator[Sequence[Delta]]: ...

    async def __anext__(self) -> Sequence[Delta]: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Generation:
    """A request whose prompts have been tokenised and which has been admitted.

    Attributes:
        deltas: the answer.
        prompt_lengths: tokens of each prompt. Each prompt has the same number of choices, in the prompts' order.
        num_choices: of all prompts together.
        role: who speaks.
        fingerprint: names the engine's configuration; None: not told.
    """

    deltas: DeltaStream = field(repr=False)
    prompt_lengths: tuple[int, ...]
    num_choices: int
    role: str = "assistant"
    fingerprint: str | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return sum(self.prompt_lengths)
