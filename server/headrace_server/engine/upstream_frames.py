"""Server-sent events as bytes: cut into whole frames without decoding what does not matter.

Pure. Frames end at a blank line, with or without carriage returns, and may be split anywhere between the chunks of a
response. Only blocks that may hold an error are parsed.
"""

import re
from dataclasses import dataclass

import msgspec

from headrace_server.domain import Operation
from headrace_server.engine.upstream_errors import from_error_event
from headrace_server.errors import EngineFault

MAX_FRAME_BYTES = 8 * 1024**2

_BOUNDARY = re.compile(rb"\r?\n\r?\n")
_LONGEST_BOUNDARY_BYTES = 4
_DONE = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE)
_DATA = re.compile(rb"^data:", re.MULTILINE)
_ERROR_SIGNS = (b'"error"', b"event: error", b"event:error")

# What the last frame of a complete answer contains. A literal may also stand in an answer's text: then an answer that
# breaks off is passed on as complete, never the other way round.
_TERMINALS: dict[Operation, re.Pattern[bytes]] = {
    Operation.CHAT: _DONE,
    Operation.COMPLETION: _DONE,
    Operation.RESPONSE: re.compile(rb"response\.(completed|incomplete|failed)"),
    Operation.MESSAGE: re.compile(rb"message_stop"),
}


class FrameBuffer:
    """Chunks in, blocks of whole frames out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """The frames that this chunk completes; empty if it completes none.

        Raises:
            EngineFault: a frame is larger than `MAX_FRAME_BYTES`.
        """
        if not self._rest and chunk.endswith(b"\n\n"):
            return chunk
        searched = max(0, len(self._rest) - _LONGEST_BOUNDARY_BYTES)
        self._rest += chunk
        end = _last_boundary(self._rest, searched)
        block, self._rest = self._rest[:end], self._rest[end:]
        if len(self._rest) > MAX_FRAME_BYTES:
            raise EngineFault("the upstream server sent an event that is too large")
        return block

    def rest(self) -> bytes:
        """What is left when the response is over: a last frame if it is a `[DONE]` that lacks its blank line."""
        rest, self._rest = self._rest.strip(), b""
        return rest + b"\n\n" if _DONE.fullmatch(rest) else b""


def _last_boundary(buffer: bytes, start: int) -> int:
    """Where the last whole frame ends; 0 if no frame is whole."""
    plain = buffer.rfind(b"\n\n", start)
    with_returns = buffer.rfind(b"\r\n\r\n", start)
    return max(plain + 2 if plain >= 0 else 0, with_returns + 4 if with_returns >= 0 else 0)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error frame in a block: what came before it, and the error."""

    before: bytes
    error: EngineFault


def failure_in(block: bytes) -> Failure | None:
    """The first error frame of a block of whole frames."""
    if not any(sign in block for sign in _ERROR_SIGNS):
        return None
    start = 0
    for boundary in _BOUNDARY.finditer(block):
        error = from_error_event(_data_of(block[start : boundary.start()]))
        if error is not None:
            return Failure(block[:start], error)
        start = boundary.end()
    return None


def _data_of(frame: bytes) -> object:
    lines = [line.removeprefix(b"data:") for line in frame.splitlines() if line.startswith(b"data:")]
    try:
        return msgspec.json.decode(b"\n".join(lines))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def is_terminal(operation: Operation, block: bytes) -> bool:
    """Whether a block holds what ends a complete answer."""
    return _TERMINALS[operation].search(block) is not None


def is_comment(block: bytes) -> bool:
    """Whether a block holds comments only: keep-alives, which say nothing about tokens."""
    return block.startswith(b":") and _DATA.search(block) is None
