"""Everything that a request will produce, decided before the first token: words, where they stop, and why.

Pure and deterministic: equal tasks give equal plans. A longer answer continues a shorter one. No choice is longer
than the context, whatever the request asks for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from itertools import accumulate

import msgspec

from headrace_server.engine.synthetic_schema import instance_of
from headrace_server.engine.synthetic_task import Call, Document, Prose, Task
from headrace_server.engine.synthetic_vocabulary import LONGEST_PIECE, endless_words, split, words
from headrace_server.errors import InvalidRequest

DEFAULT_NUM_TOKENS = 16


class Finish(Enum):
    """Why a choice ends. END: the model had no more to say."""

    END = "end"
    STOP = "stop"
    LENGTH = "length"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer: the text that each token adds. `stop` is the stop string that ended it, if one did."""

    index: int
    pieces: list[str] = field(repr=False)
    finish: Finish
    stop: str | None = None
    tool: str | None = None
    echoed: list[str] = field(default_factory=list, repr=False)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Plan:
    """All answers to one task."""

    task: Task
    choices: tuple[Choice, ...]
    prompt_lengths: tuple[int, ...]

    @property
    def num_prompt_tokens(self) -> int:
        return sum(self.prompt_lengths)

    @property
    def num_generation_tokens(self) -> int:
        return sum(len(choice.pieces) for choice in self.choices)

    @property
    def num_steps(self) -> int:
        """Each step makes a token of every choice that has not ended."""
        return max(len(choice.pieces) for choice in self.choices)

    def tokens_per_step(self) -> Iterator[int]:
        lengths = [len(choice.pieces) for choice in self.choices]
        for step in range(self.num_steps):
            yield sum(length > step for length in lengths)


def plan_of(task: Task, *, engine_seed: int, max_model_len: int) -> Plan:
    """Decide what the model will say.

    Raises:
        InvalidRequest: a prompt leaves no room in the context, or the schema cannot be served.
    """
    prompts = [bounded_tokens(prompt, max_model_len, num_reserved=1) for prompt in task.prompts]
    choices: list[Choice] = []
    for text, prompt in zip(task.prompts, prompts, strict=True):
        num_free = max_model_len - len(prompt)
        for nth in range(task.n):
            about = f"{engine_seed} {task.seed} {nth} {_digest(text)}"
            choices.append(_choice(task, len(choices), about=about, num_free=num_free, prompt=prompt))
    return Plan(task, tuple(choices), tuple(map(len, prompts)))


def _digest(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass")).hexdigest()


def bounded_tokens(text: str, max_model_len: int, *, num_reserved: int = 0) -> list[str]:
    """The token texts of a prompt; one that is far too long is refused without being tokenised.

    Raises:
        InvalidRequest: with code `context_length_exceeded`.
    """
    num_allowed = max_model_len - num_reserved
    if len(text) <= max_model_len * LONGEST_PIECE:
        pieces = split(text)
        if len(pieces) <= num_allowed:
            return pieces
    message = f"the prompt is too long: this model's context length is {max_model_len} tokens"
    raise InvalidRequest(message, code="context_length_exceeded")


def _choice(task: Task, index: int, *, about: str, num_free: int, prompt: list[str]) -> Choice:
    limit = min(task.max_tokens or num_free, num_free)
    pieces, finish = _said(task, about, limit)
    kept, stop = _cut(pieces, task.stops)
    return Choice(
        index=index,
        pieces=kept,
        finish=Finish.STOP if stop is not None else finish,
        stop=stop,
        tool=task.form.name if isinstance(task.form, Call) else None,
        echoed=prompt if task.echo else [],
    )


def _said(task: Task, about: str, limit: int) -> tuple[list[str], Finish]:
    """The answer before stop strings are applied, and why it ends there."""
    match task.form:
        case Prose():
            num_tokens = min(limit, task.max_tokens or DEFAULT_NUM_TOKENS)
            is_cut = task.max_tokens is not None or num_tokens < DEFAULT_NUM_TOKENS
            return words(about=about, num_tokens=num_tokens), Finish.LENGTH if is_cut else Finish.END
        case Document(schema) | Call(_, schema):
            value = instance_of(schema, endless_words(about=about))
            pieces = split(msgspec.json.encode(value).decode())
            if len(pieces) > limit:
                return pieces[:limit], Finish.LENGTH
            return pieces, Finish.CALL if isinstance(task.form, Call) else Finish.END


def _cut(pieces: list[str], stops: tuple[str, ...]) -> tuple[list[str], str | None]:
    """The tokens up to the one that completes the earliest stop string, without that string."""
    text = "".join(pieces) if stops else ""
    found = [(start + len(stop), start, stop) for stop in stops if (start := text.find(stop)) >= 0]
    if not found:
        return pieces, None
    end, start, stop = min(found)
    kept = []
    for piece, offset in zip(pieces, accumulate(map(len, pieces), initial=0), strict=False):
        if offset >= end:
            break
        kept.append(piece[: max(0, start - offset)])
    return kept, stop
