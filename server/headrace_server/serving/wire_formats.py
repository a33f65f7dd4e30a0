"""OpenAI's two shapes of generated text: chat completions and text completions, as chunks and as whole documents.

A `WireFormat` says what is in a choice; `answer` puts choices into frames and documents. Pure, but for the text offsets
that a text completion's log probabilities are counted from.
"""

from collections.abc import Sequence
from typing import Protocol

from headrace_server.domain import Operation
from headrace_server.generation import Delta, TokenLogprob, ToolCallDelta
from headrace_server.serving.transcript import Said, ToolCall

_PENDING = {"logprobs": None, "finish_reason": None}


class WireFormat(Protocol):
    """How one API shows a choice.

    Attributes:
        id_prefix: of the answer's id.
        chunk_object, document_object: the value of `object`.
        text_path: the JSON that stands before and after the text of a chunk that brings nothing else.
    """

    id_prefix: str
    chunk_object: str
    document_object: str
    text_path: tuple[bytes, bytes]

    def opening(self, index: int, role: str) -> dict[str, object] | None:
        """The choice of the chunk that comes before the first token; None: there is none."""

    def chunk(self, delta: Delta) -> dict[str, object]:
        """The choice of one chunk."""

    def document(self, said: Said, role: str) -> dict[str, object]:
        """The choice of a whole document."""


class ChatFormat:
    """`chat.completion` and `chat.completion.chunk`."""

    id_prefix = "chatcmpl-"
    chunk_object = "chat.completion.chunk"
    document_object = "chat.completion"
    text_path = (b'"delta":{"content":', b'},"logprobs":null,"finish_reason":null')

    def opening(self, index: int, role: str) -> dict[str, object]:
        """See `WireFormat.opening`."""
        return {"index": index, "delta": {"role": role, "content": ""}, **_PENDING}

    def chunk(self, delta: Delta) -> dict[str, object]:
        """See `WireFormat.chunk`."""
        said: dict[str, object] = {"content": delta.text} if delta.text else {}
        if delta.reasoning:
            said["reasoning"] = delta.reasoning
        if delta.tool_calls:
            said["tool_calls"] = [_call_piece(piece) for piece in delta.tool_calls]
        return {
            "index": delta.index,
            "delta": said,
            "logprobs": _chat_logprobs(delta.logprobs),
            "finish_reason": delta.finish_reason,
            **_stop(delta),
        }

    def document(self, said: Said, role: str) -> dict[str, object]:
        """See `WireFormat.document`."""
        calls = [_whole_call(call) for call in said.calls()]
        text, reasoning = "".join(said.text), "".join(said.reasoning)
        message: dict[str, object] = {"role": role, "content": text or (None if calls else ""), "refusal": None}
        if reasoning:
            message["reasoning"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return {
            "index": said.index,
            "message": message,
            "logprobs": _chat_logprobs(said.logprobs),
            "finish_reason": said.finish_reason,
            **_stop(said),
        }


class CompletionFormat:
    """`text_completion`, the same object whole and in chunks."""

    id_prefix = "cmpl-"
    chunk_object = document_object = "text_completion"
    text_path = (b'"text":', b',"logprobs":null,"finish_reason":null')

    def __init__(self) -> None:
        self._offsets: dict[int, int] = {}

    def opening(self, index: int, role: str) -> None:
        """See `WireFormat.opening`."""

    def chunk(self, delta: Delta) -> dict[str, object]:
        """See `WireFormat.chunk`."""
        return self._choice(delta, delta.text)

    def document(self, said: Said, role: str) -> dict[str, object]:
        """See `WireFormat.document`."""
        return self._choice(said, "".join(said.text))

    def _choice(self, part: Delta | Said, text: str) -> dict[str, object]:
        return {
            "index": part.index,
            "text": text,
            "logprobs": self._logprobs(part.index, part.logprobs),
            "finish_reason": part.finish_reason,
            **_stop(part),
        }

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob] | None) -> dict[str, object] | None:
        """Offsets count the characters of the tokens reported before, not of the text: text that might begin a stop
        string is held back, tokens are not."""
        if logprobs is None:
            return None
        offsets = []
        place = self._offsets.get(index, 0)
        for entry in logprobs:
            offsets.append(place)
            place += len(entry.token)
        self._offsets[index] = place
        return {
            "tokens": [entry.token for entry in logprobs],
            "token_logprobs": [entry.logprob for entry in logprobs],
            "top_logprobs": [None if entry.top is None else dict(entry.top) for entry in logprobs],
            "text_offset": offsets,
        }


def wire_format(operation: Operation) -> WireFormat:
    """The format of a generating operation.

    Raises:
        ValueError: the operation has no deltas.
    """
    match operation:
        case Operation.CHAT:
            return ChatFormat()
        case Operation.COMPLETION:
            return CompletionFormat()
        case _:
            raise ValueError(f"{operation} is not answered with deltas")


def _stop(part: Delta | Said) -> dict[str, object]:
    """`stop_reason` is vLLM's addition: which stop string or token it was. Only where a choice ends."""
    return {} if part.finish_reason is None else {"stop_reason": part.stop_reason}


def _call_piece(piece: ToolCallDelta) -> dict[str, object]:
    function: dict[str, object] = {"arguments": piece.arguments}
    if piece.name is None:
        return {"index": piece.index, "function": function}
    return {
        "index": piece.index,
        "id": piece.id,
        "type": "function",
        "function": {"name": piece.name, **function},
    }


def _whole_call(call: ToolCall) -> dict[str, object]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _chat_logprobs(logprobs: Sequence[TokenLogprob] | None) -> dict[str, object] | None:
    if logprobs is None:
        return None
    return {"content": [_chat_logprob(entry) for entry in logprobs], "refusal": None}


def _chat_logprob(entry: TokenLogprob) -> dict[str, object]:
    top = [_named(token, logprob) for token, logprob in entry.top or ()]
    return {**_named(entry.token, entry.logprob), "top_logprobs": top}


def _named(token: str, logprob: float | None) -> dict[str, object]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode(errors="replace"))}
