"""What an upstream server did for a request, as far as it tells, said on the request's seat.

A stream counts one token for each event that brings text, until the server says how many there were: then what is
missing is added. Nothing is counted twice, and nothing is taken back. How many of a prompt's tokens there were is known
only once the server says so, which for OpenAI's streams is their end.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from headrace_server.domain import Operation, Seat

# What an event contains that brings text: of the answer, of reasoning, of a tool call.
_TEXTS: dict[Operation, re.Pattern[bytes]] = {
    Operation.CHAT: re.compile(rb'"(?:content|reasoning|reasoning_content|arguments)": ?"[^"]'),
    Operation.COMPLETION: re.compile(rb'"text": ?"[^"]'),
    Operation.RESPONSE: re.compile(rb'"type": ?"response\.[a-z_.]+\.delta"'),
    Operation.MESSAGE: re.compile(rb'"type": ?"content_block_delta"'),
}
_USAGE = re.compile(rb'"usage": ?\{')
_FRAME = re.compile(rb".+?(?:\r?\n\r?\n|$)", re.DOTALL)
_NO_CHOICES = b"[]"
_DATA = re.compile(rb"^data: ?(\{.*\})\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Details:
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts under OpenAI's two names and Anthropic's."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None

    @property
    def prompt(self) -> tuple[int, int]:
        """Tokens that were computed, and tokens that were at hand. OpenAI counts both together, Anthropic apart."""
        total = self.prompt_tokens or self.input_tokens or 0
        details = self.prompt_tokens_details or self.input_tokens_details or _Details()
        cached = min(details.cached_tokens or 0, total)
        return total - cached, cached + (self.cache_read_input_tokens or 0)

    @property
    def num_output_tokens(self) -> int:
        return self.completion_tokens or self.output_tokens or 0


@dataclass(frozen=True, slots=True)
class _Holder:
    usage: Usage | None = None


class _Event(msgspec.Struct, frozen=True):
    """A document or an event, wherever it says what was used."""

    usage: Usage | None = None
    message: _Holder | None = None
    response: _Holder | None = None
    choices: msgspec.Raw = msgspec.Raw()

    @property
    def told(self) -> Usage | None:
        for holder in (self, self.message, self.response):
            if holder is not None and holder.usage is not None:
                return holder.usage
        return None


class UpstreamAccount:
    """Counts one request. `on_prompt` and `on_output` hear the numbers of tokens too."""

    def __init__(
        self,
        seat: Seat,
        operation: Operation,
        *,
        on_prompt: Callable[[int], None],
        on_output: Callable[[int], None],
        hides_usage: bool = False,
    ) -> None:
        self._seat = seat
        self._texts = _TEXTS.get(operation)
        self._on_prompt = on_prompt
        self._on_output = on_output
        self._hides_usage = hides_usage
        self._has_begun = False
        self._num_output_tokens = 0

    def document(self, body: bytes) -> None:
        """A whole answer."""
        self._heed(_read(body))

    def passed(self, block: bytes) -> bytes:
        """Whole frames of a stream, less an event that does nothing but tell the usage where nobody asked for it."""
        if self._texts is not None:
            self._add_output(len(self._texts.findall(block)))
        if _USAGE.search(block) is None:
            return block
        return b"".join(frame for frame in _FRAME.findall(block) if not self._is_hidden(frame))

    def _is_hidden(self, frame: bytes) -> bool:
        found = _DATA.search(frame)
        event = _read(found[1]) if found else _Event()
        self._heed(event)
        return self._hides_usage and event.told is not None and bytes(event.choices) == _NO_CHOICES

    def _heed(self, event: _Event) -> None:
        usage = event.told
        if usage is None:
            return
        computed, cached = usage.prompt
        if not self._has_begun and computed + cached:
            self._has_begun = True
            self._on_prompt(computed + cached)
            self._seat.began(computed, cached)
        self._add_output(usage.num_output_tokens - self._num_output_tokens)

    def _add_output(self, num_tokens: int) -> None:
        if num_tokens > 0:
            self._num_output_tokens += num_tokens
            self._on_output(num_tokens)
            self._seat.generated(num_tokens)


def _read(document: bytes) -> _Event:
    """What is not understood says nothing."""
    try:
        return msgspec.json.decode(document, type=_Event)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Event()
