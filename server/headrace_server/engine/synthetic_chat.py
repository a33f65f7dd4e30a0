"""Plans as OpenAI chat completions: the document and the chunks.

A stream has the roles (and the names of called tools) together with the first token, one chunk per token and choice,
a chunk with the reason for the end, the usage if asked for, and `[DONE]`.
"""

from collections.abc import Iterator
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
from headrace_server.engine.synthetic_logprobs import chat_entry
from headrace_server.engine.synthetic_plan import Choice, Plan

_ROLE = b'{"role":"assistant","content":""}'


class ChatDialect:
    """One chat completion."""

    def __init__(self, plan: Plan, envelope: Envelope) -> None:
        self._plan = plan
        self._fields = {
            "id": f"chatcmpl-{envelope.request_id}",
            "created": envelope.created,
            "model": envelope.model,
            "system_fingerprint": "synthetic",
        }
        self._head = chunk_head({**self._fields, "object": "chat.completion.chunk"})

    def document(self) -> bytes:
        """See `Dialect.document`."""
        choices = [self._choice(choice) for choice in self._plan.choices]
        usage = openai_usage(self._plan)
        return encode({**self._fields, "object": "chat.completion", "choices": choices, "usage": usage})

    def _choice(self, choice: Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": self._message(choice),
            "logprobs": self._logprobs(choice.pieces),
            "finish_reason": OPENAI_FINISH[choice.finish],
        }

    def _message(self, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.tool is None:
            return message
        function = {"name": choice.tool, "arguments": choice.text}
        call = {"id": self._call_id(choice), "type": "function", "function": function}
        return {**message, "content": None, "tool_calls": [call]}

    def _call_id(self, choice: Choice) -> str:
        return f"call-{self._fields['id']}-{choice.index}"

    def _logprobs(self, pieces: list[str]) -> dict[str, Any] | None:
        num_top = self._plan.task.top_logprobs
        if num_top is None:
            return None
        return {"content": [chat_entry(piece, num_top) for piece in pieces], "refusal": None}

    def opening(self) -> bytes:
        """See `Dialect.opening`: the roles, and the names of the tools that are called."""
        return b"".join(map(self._opening, self._plan.choices))

    def _opening(self, choice: Choice) -> bytes:
        role = self._chunk(choice, _ROLE)
        if choice.tool is None:
            return role
        call = {
            "index": 0,
            "id": self._call_id(choice),
            "type": "function",
            "function": {"name": choice.tool, "arguments": ""},
        }
        return role + self._chunk(choice, encode({"tool_calls": [call]}))

    def _chunk(self, choice: Choice, delta: bytes, *, finish: bytes = b"null") -> bytes:
        tail = b',"logprobs":null,"finish_reason":' + finish + b"}]}\n\n"
        return self._head + b'{"index":%d,"delta":' % choice.index + delta + tail

    def frames(self, choice: Choice) -> Iterator[bytes]:
        """See `Dialect.frames`."""
        head, tail = self._around(choice)
        pieces = choice.pieces
        for i in range(len(pieces) - 1):
            yield head + encode(pieces[i]) + tail(pieces[i])
        end = self._chunk(choice, b"{}", finish=encode(OPENAI_FINISH[choice.finish]))
        yield head + encode(pieces[-1]) + tail(pieces[-1]) + end

    def _around(self, choice: Choice) -> tuple[bytes, Any]:
        """What comes before and after the JSON string of a token."""
        before, after = (b'{"content":', b"}")
        if choice.tool is not None:
            before, after = (b'{"tool_calls":[{"index":0,"function":{"arguments":', b"}}]}")
        head = self._head + b'{"index":%d,"delta":' % choice.index + before
        return head, self._tail(after)

    def _tail(self, after: bytes) -> Any:
        end = b',"finish_reason":null}]}\n\n'
        plain = after + b',"logprobs":null' + end
        if self._plan.task.top_logprobs is None:
            return lambda _piece: plain
        return lambda piece: after + b',"logprobs":' + encode(self._logprobs([piece])) + end

    def closing(self) -> bytes:
        """See `Dialect.closing`."""
        return usage_chunk(self._head, self._plan) + DONE
