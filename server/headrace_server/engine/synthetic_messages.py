"""Plans as Anthropic messages: the document and the events.

A message has one content block, which the events open, fill token by token and close; the reason for the end and the
output's tokens come in `message_delta`.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from headrace_server.engine.synthetic_dialect import Envelope, encode, event
from headrace_server.engine.synthetic_plan import Choice, Finish, Plan

_STOP_REASONS = {
    Finish.END: "end_turn",
    Finish.STOP: "stop_sequence",
    Finish.LENGTH: "max_tokens",
    Finish.CALL: "tool_use",
}


class MessageDialect:
    """One message with one content block, text or a tool use."""

    def __init__(self, plan: Plan, envelope: Envelope) -> None:
        self._plan = plan
        self._choice = plan.choices[0]
        self._envelope = envelope

    def document(self) -> bytes:
        """See `Dialect.document`. Arguments of a tool that were cut short are left out, as they are no object."""
        block = self._block(self._choice.text)
        return encode({**self._message(self._usage()), **self._ending(), "content": [block]})

    def _message(self, usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._envelope.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._envelope.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _ending(self) -> dict[str, str | None]:
        return {"stop_reason": _STOP_REASONS[self._choice.finish], "stop_sequence": self._choice.stop}

    def _block(self, text: str) -> dict[str, Any]:
        if self._choice.tool is None:
            return {"type": "text", "text": text}
        use_id = f"toolu_{self._envelope.request_id}"
        return {"type": "tool_use", "id": use_id, "name": self._choice.tool, "input": _object(text)}

    def _usage(self) -> dict[str, int]:
        return {
            "input_tokens": self._plan.num_prompt_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": self._plan.num_generation_tokens,
        }

    def opening(self) -> bytes:
        """See `Dialect.opening`."""
        message = self._message({**self._usage(), "output_tokens": 0})
        start = event("message_start", {"message": message})
        return start + event("content_block_start", {"index": 0, "content_block": self._block("")})

    def frames(self, choice: Choice) -> Iterator[bytes]:
        """See `Dialect.frames`."""
        kind, name = ("text_delta", "text") if choice.tool is None else ("input_json_delta", "partial_json")
        whole = event("content_block_delta", {"index": 0, "delta": {"type": kind, name: ""}})
        head = whole.removesuffix(b'""}}\n\n')
        for piece in choice.pieces:
            yield head + encode(piece) + b"}}\n\n"

    def closing(self) -> bytes:
        """See `Dialect.closing`."""
        delta = event("message_delta", {"delta": self._ending(), "usage": self._usage()})
        return event("content_block_stop", {"index": 0}) + delta + event("message_stop", {})


def _object(text: str) -> object:
    try:
        return msgspec.json.decode(text) if text else {}
    except msgspec.DecodeError:
        return {}
