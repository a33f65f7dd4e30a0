"""Generated text on its way to the client: the hot path.

Per token this writes one frame: bytes that were made once per stream, around the token's JSON string (0.2 µs; vLLM's
pydantic chunk takes 9.4). Everything rarer (roles, tool calls, log probabilities, the end, usage) is a dict that is
encoded whole. Deltas that come together leave as one item, so that a receiver who lags gets fewer and longer ones.
"""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from headrace_server.domain import EngineReply, EngineRequest, JsonObject, Reply, StreamReply, UnaryReply
from headrace_server.errors import EngineFault
from headrace_server.generation import Delta, Generation
from headrace_server.serving.transcript import Said, Tally
from headrace_server.serving.wire_formats import WireFormat, wire_format

_DONE = b"data: [DONE]\n\n"
_END = b"}\n\n"
_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class _UsageWish:
    """`stream_options`: usage at the end, and with every chunk."""

    at_end: bool
    always: bool

    @classmethod
    def of(cls, payload: JsonObject) -> "_UsageWish":
        options = payload.get("stream_options")
        asked = options if isinstance(options, dict) else {}
        at_end = bool(asked.get("include_usage"))
        return cls(at_end, at_end and bool(asked.get("continuous_usage_stats")))


async def written(request: EngineRequest, reply: EngineReply) -> Reply:
    """What an engine answered in the form in which it leaves.

    Raises:
        RequestError: the generation of an answer in one piece failed.
    """
    match reply:
        case Generation() if request.stream:
            return StreamReply(AnswerStream(request, reply))
        case Generation():
            return await whole_answer(request, reply)
        case _:
            return reply


async def whole_answer(request: EngineRequest, generation: Generation) -> UnaryReply:
    """Read the generation to its end and write it as one document.

    Raises:
        RequestError: the generation failed.
    """
    choices = [Said(index) for index in range(generation.num_choices)]
    tally = Tally(generation)
    async with aclosing(generation.deltas) as deltas:
        async for step in deltas:
            for delta in step:
                choices[delta.index].add(delta)
                tally.add(delta)
    shape = wire_format(request.operation)
    document = {
        **_head(request, shape, shape.document_object),
        "choices": [shape.document(_finished(said), generation.role) for said in choices],
        "usage": tally.usage(),
        "system_fingerprint": generation.fingerprint,
    }
    return UnaryReply(_encode(document))


def _head(request: EngineRequest, shape: WireFormat, kind: str) -> dict[str, object]:
    return {
        "id": f"{shape.id_prefix}{request.request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
    }


def _finished(said: Said) -> Said:
    """A choice without an end is not a whole answer.

    Raises:
        EngineFault: it has none.
    """
    if said.finish_reason is None:
        raise _cut_short()
    return said


def _cut_short() -> EngineFault:
    return EngineFault("the engine ended this request before it was finished", code="engine_aborted")


class AnswerStream:
    """A generation as server-sent events; see `domain.EventStream`."""

    def __init__(self, request: EngineRequest, generation: Generation) -> None:
        self._deltas = generation.deltas
        self._frames = _Frames(request, generation)
        self._is_over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        while True:
            try:
                step = await self._deltas.__anext__()
            except StopAsyncIteration:
                if self._is_over:  # closed while it was being read
                    raise
                self._is_over = True
                return self._frames.closing()
            except BaseException:
                self._is_over = True
                raise
            frames = self._frames.of(step)
            if frames:  # else tokens that show nothing: half a character, the start of a tool call
                return frames

    async def aclose(self) -> None:
        """Stop the generation."""
        self._is_over = True
        await self._deltas.aclose()


class _Frames:
    """The frames of one answer."""

    def __init__(self, request: EngineRequest, generation: Generation) -> None:
        self._shape = wire_format(request.operation)
        self._generation = generation
        self._usage = _UsageWish.of(request.payload)
        self._tally = Tally(generation)
        self._open = set(range(generation.num_choices))
        head = _head(request, self._shape, self._shape.chunk_object)
        self._head = b"data: " + _encode(head)[:-1]
        before, self._after_text = self._around_text()
        self._before_text = [before % index for index in range(generation.num_choices)]
        self._has_begun = False

    def _around_text(self) -> tuple[bytes, bytes]:
        before, after = self._shape.text_path
        head = self._head.replace(b"%", b"%%")
        return head + b',"choices":[{"index":%d,' + before, after + b"}]}\n\n"

    def of(self, step: Sequence[Delta]) -> bytes:
        """The frames of one step; empty where it shows nothing."""
        if self._has_begun and len(step) == 1:
            return self._frame(step[0])
        opening = b"" if self._has_begun else b"".join(self._openings())
        self._has_begun = True
        return opening + b"".join(map(self._frame, step))

    def _openings(self) -> Iterator[bytes]:
        for index in range(self._generation.num_choices):
            choice = self._shape.opening(index, self._generation.role)
            if choice is not None:
                yield self._chunk(choice, index)

    def _frame(self, delta: Delta) -> bytes:
        self._tally.add(delta)
        if _is_plain(delta) and not self._usage.always:
            if not delta.text:
                return b""
            return self._before_text[delta.index] + _encode(delta.text) + self._after_text
        if not _shows_something(delta):
            return b""
        return self._chunk(self._shape.chunk(delta), delta.index, is_last=self._ends(delta))

    def _ends(self, delta: Delta) -> bool:
        if delta.finish_reason is not None:
            self._open.discard(delta.index)
        return delta.finish_reason is not None

    def _chunk(self, choice: dict[str, object], index: int, *, is_last: bool = False) -> bytes:
        tail: dict[str, object] = {"choices": [choice]}
        if is_last and not self._usage.at_end and self._generation.fingerprint is not None:
            tail["system_fingerprint"] = self._generation.fingerprint
        if self._usage.always:
            tail["usage"] = self._tally.usage_of(index)
        return self._with_head(tail)

    def _with_head(self, tail: dict[str, object]) -> bytes:
        return self._head + b"," + _encode(tail)[1:-1] + _END

    def closing(self) -> bytes:
        """The usage, where it was asked for, and the end.

        Raises:
            EngineFault: a choice has no end.
        """
        if self._open:
            raise _cut_short()
        if not self._usage.at_end:
            return _DONE
        tail: dict[str, object] = {
            "choices": [],
            "usage": self._tally.usage(),
            "system_fingerprint": self._generation.fingerprint,
        }
        return self._with_head(tail) + _DONE


def _is_plain(delta: Delta) -> bool:
    """Whether a delta is text and nothing else."""
    return delta.finish_reason is None and delta.logprobs is None and not delta.tool_calls and not delta.reasoning


def _shows_something(delta: Delta) -> bool:
    return bool(delta.text) or not _is_plain(delta)
