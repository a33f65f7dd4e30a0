"""Plans as OpenAI responses: the document and the events.

A response cut by `max_output_tokens` is incomplete and ends in `response.incomplete`, as OpenAI's reference has it
(vLLM ends it in `response.completed` with an incomplete response inside; vllm#45386).
"""

from collections.abc import Iterator
from typing import Any

from headrace_server.engine.synthetic_dialect import Envelope, encode, event
from headrace_server.engine.synthetic_plan import Choice, Finish, Plan

_ECHOED_FIELDS = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "previous_response_id",
    "reasoning",
    "service_tier",
    "temperature",
    "top_p",
    "truncation",
    "user",
)


class ResponseDialect:
    """One response with one output item, a message or a function call."""

    def __init__(self, plan: Plan, envelope: Envelope) -> None:
        self._plan = plan
        self._choice = plan.choices[0]
        self._envelope = envelope
        self._is_call = self._choice.tool is not None
        prefix = "fc" if self._is_call else "msg"
        self._item_id = f"{prefix}_{envelope.request_id}"
        self._status = "incomplete" if self._choice.finish is Finish.LENGTH else "completed"

    def document(self) -> bytes:
        """See `Dialect.document`."""
        return encode(self._response(self._status))

    def _response(self, status: str) -> dict[str, Any]:
        payload = self._envelope.payload
        is_over = status != "in_progress"
        return {
            "id": f"resp_{self._envelope.request_id}",
            "object": "response",
            "created_at": self._envelope.created,
            "model": self._envelope.model,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [self._item(status)] if is_over else [],
            "parallel_tool_calls": payload.get("parallel_tool_calls") is not False,
            "store": False,
            "text": payload.get("text") or {"format": {"type": "text"}},
            "tool_choice": payload.get("tool_choice") or "auto",
            "tools": payload.get("tools") or [],
            "usage": self._usage() if is_over else None,
            **{name: payload.get(name) for name in _ECHOED_FIELDS},
        }

    def _usage(self) -> dict[str, Any]:
        num_input, num_output = self._plan.num_prompt_tokens, self._plan.num_generation_tokens
        return {
            "input_tokens": num_input,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": num_output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_input + num_output,
        }

    def _item(self, status: str) -> dict[str, Any]:
        """The output item; it has nothing in it while it is in progress."""
        text = "" if status == "in_progress" else self._choice.text
        if self._is_call:
            return {
                "type": "function_call",
                "id": self._item_id,
                "call_id": f"call_{self._envelope.request_id}",
                "name": self._choice.tool,
                "arguments": text,
                "status": status,
            }
        content = [] if status == "in_progress" else [_part(text)]
        return {"type": "message", "id": self._item_id, "role": "assistant", "status": status, "content": content}

    def opening(self) -> bytes:
        """See `Dialect.opening`."""
        in_progress = {"response": self._response("in_progress")}
        events: list[tuple[str, dict[str, Any]]] = [
            ("response.created", in_progress),
            ("response.in_progress", in_progress),
            ("response.output_item.added", {"output_index": 0, "item": self._item("in_progress")}),
        ]
        if not self._is_call:
            events.append(("response.content_part.added", {**self._place(), "part": _part("")}))
        return _numbered(events, start=0)

    def _place(self) -> dict[str, object]:
        place: dict[str, object] = {"item_id": self._item_id, "output_index": 0}
        return place if self._is_call else {**place, "content_index": 0}

    def frames(self, choice: Choice) -> Iterator[bytes]:
        """See `Dialect.frames`."""
        kind = "function_call_arguments" if self._is_call else "output_text"
        fields = self._place() if self._is_call else {**self._place(), "logprobs": []}
        whole = event(f"response.{kind}.delta", {**fields, "sequence_number": 0})
        head = whole.removesuffix(b"0}\n\n")
        for number, piece in enumerate(choice.pieces, start=self._num_opening):
            yield head + b'%d,"delta":' % number + encode(piece) + b"}\n\n"

    @property
    def _num_opening(self) -> int:
        return 3 if self._is_call else 4

    def closing(self) -> bytes:
        """See `Dialect.closing`."""
        events: list[tuple[str, dict[str, Any]]] = [
            *(self._call_done() if self._is_call else self._text_done()),
            ("response.output_item.done", {"output_index": 0, "item": self._item(self._status)}),
            (f"response.{self._status}", {"response": self._response(self._status)}),
        ]
        return _numbered(events, start=self._num_opening + len(self._choice.pieces))

    def _call_done(self) -> Iterator[tuple[str, dict[str, Any]]]:
        done = {**self._place(), "name": self._choice.tool, "arguments": self._choice.text}
        yield "response.function_call_arguments.done", done

    def _text_done(self) -> Iterator[tuple[str, dict[str, Any]]]:
        text = self._choice.text
        yield "response.output_text.done", {**self._place(), "text": text, "logprobs": []}
        yield "response.content_part.done", {**self._place(), "part": _part(text)}


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _numbered(events: list[tuple[str, dict[str, Any]]], *, start: int) -> bytes:
    return b"".join(
        event(kind, {"sequence_number": number, **body}) for number, (kind, body) in enumerate(events, start)
    )
