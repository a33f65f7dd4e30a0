"""Plans as OpenAI text completions: the document and the chunks.

A stream has one chunk per token and choice; the last token of a choice brings the reason for its end. Echoed prompts
are chunks of their own before the first token.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from headrace_server.engine.synthetic_dialect import (
    DONE,
    OPENAI_FINISH,
    Envelope,
    chunk_head,
    encode,
    openai_usage,
    usage_chunk,
)
from headrace_server.engine.synthetic_logprobs import completion_block
from headrace_server.engine.synthetic_plan import Choice, Plan


class CompletionDialect:
    """One text completion; an echoed prompt is part of the text and comes with the first token."""

    def __init__(self, plan: Plan, envelope: Envelope) -> None:
        self._plan = plan
        self._fields = {
            "id": f"cmpl-{envelope.request_id}",
            "created": envelope.created,
            "model": envelope.model,
            "system_fingerprint": "synthetic",
            "object": "text_completion",
        }
        self._head = chunk_head(self._fields)

    def document(self) -> bytes:
        """See `Dialect.document`."""
        choices = [self._choice(choice) for choice in self._plan.choices]
        return encode({**self._fields, "choices": choices, "usage": openai_usage(self._plan)})

    def _choice(self, choice: Choice) -> dict[str, Any]:
        pieces = [*choice.echoed, *choice.pieces]
        return {
            "index": choice.index,
            "text": "".join(pieces),
            "logprobs": self._logprobs(pieces, offset=0, is_echo=bool(choice.echoed)),
            "finish_reason": OPENAI_FINISH[choice.finish],
        }

    def _logprobs(self, pieces: list[str], *, offset: int, is_echo: bool = False) -> dict[str, Any] | None:
        num_top = self._plan.task.top_logprobs
        if num_top is None:
            return None
        return completion_block(pieces, num_top=num_top, offset=offset, num_unscored=int(is_echo))

    def opening(self) -> bytes:
        """See `Dialect.opening`: the echoed prompts."""
        return b"".join(self._echo(choice) for choice in self._plan.choices if choice.echoed)

    def _echo(self, choice: Choice) -> bytes:
        logprobs = encode(self._logprobs(choice.echoed, offset=0, is_echo=True))
        return self._chunk(choice.index, encode("".join(choice.echoed)), logprobs=logprobs)

    def _chunk(self, index: int, text: bytes, *, logprobs: bytes = b"null", finish: bytes = b"null") -> bytes:
        tail = b',"logprobs":' + logprobs + b',"finish_reason":' + finish + b"}]}\n\n"
        return self._head + b'{"index":%d,"text":' % index + text + tail

    def frames(self, choice: Choice) -> Iterator[bytes]:
        """See `Dialect.frames`."""
        last = len(choice.pieces) - 1
        yield from self._scored(choice, last) if self._plan.task.top_logprobs is not None else self._plain(choice, last)

    def _plain(self, choice: Choice, last: int) -> Iterator[bytes]:
        head = self._head + b'{"index":%d,"text":' % choice.index
        tail = b',"logprobs":null,"finish_reason":null}]}\n\n'
        for piece in choice.pieces[:last]:
            yield head + encode(piece) + tail
        yield self._chunk(choice.index, encode(choice.pieces[last]), finish=self._finish(choice))

    def _scored(self, choice: Choice, last: int) -> Iterator[bytes]:
        start = sum(map(len, choice.echoed))
        offsets = accumulate(map(len, choice.pieces), initial=start)
        for i, (piece, offset) in enumerate(zip(choice.pieces, offsets, strict=False)):
            logprobs = encode(self._logprobs([piece], offset=offset))
            finish = self._finish(choice) if i == last else b"null"
            yield self._chunk(choice.index, encode(piece), logprobs=logprobs, finish=finish)

    def _finish(self, choice: Choice) -> bytes:
        return encode(OPENAI_FINISH[choice.finish])

    def closing(self) -> bytes:
        """See `Dialect.closing`."""
        return usage_chunk(self._head, self._plan) + DONE
