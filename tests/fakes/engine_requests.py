"""Requests to engines, and readers for what engines answer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace_server.domain import (
    Caller,
    Demand,
    EngineRequest,
    ModelId,
    Operation,
    RequestId,
    StreamReply,
    TenantId,
    UnaryReply,
)
from headrace_server.engine.base import Engine
from headrace_server.serving.answer import written

MODEL = ModelId("mill")


@dataclass(frozen=True, slots=True)
class Frame:
    """One server-sent event. `data` is decoded JSON, or the text `[DONE]`."""

    event: str | None
    data: Any


def engine_request(operation: Operation, payload: Mapping[str, object], *, stream: bool = False) -> EngineRequest:
    return EngineRequest(
        operation=operation,
        model=MODEL,
        request_id=RequestId("r1"),
        caller=Caller(TenantId("tests")),
        payload={"model": MODEL, **({"stream": True} if stream else {}), **payload},
        stream=stream,
    )


class OpenSeat:
    """A seat that is free at once, and remembers what was asked for it and said on it."""

    def __init__(self) -> None:
        self.demands: list[Demand] = []
        self.prompts: list[tuple[int, int]] = []
        self.num_generated = 0
        self.is_favoured = False

    async def take(self, demand: Demand) -> None:
        self.demands.append(demand)

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        self.prompts.append((num_computed_tokens, num_cached_tokens))

    def generated(self, num_tokens: int) -> None:
        self.num_generated += num_tokens


async def document(engine: Engine, operation: Operation, **payload: object) -> Any:
    """The decoded unary reply, as `serving` writes it."""
    request = engine_request(operation, payload)
    reply = await written(request, await engine.submit(request, OpenSeat()))
    assert isinstance(reply, UnaryReply)
    return msgspec.json.decode(reply.body)


async def opened(engine: Engine, operation: Operation, **payload: object) -> StreamReply:
    """A stream of which nothing has been read."""
    request = engine_request(operation, payload, stream=True)
    reply = await written(request, await engine.submit(request, OpenSeat()))
    assert isinstance(reply, StreamReply)
    return reply


async def streamed(engine: Engine, operation: Operation, **payload: object) -> list[Frame]:
    """All frames of a streamed reply."""
    reply = await opened(engine, operation, **payload)
    return frames_of([item async for item in reply.events])


def frames_of(items: Iterable[bytes]) -> list[Frame]:
    """The frames in a stream's items, each of which must hold whole frames only."""
    frames: list[Frame] = []
    for item in items:
        assert item.endswith(b"\n\n"), item
        frames.extend(_frame(part) for part in item.decode().strip().split("\n\n"))
    return frames


def _frame(text: str) -> Frame:
    fields = dict(line.split(": ", 1) for line in text.split("\n"))
    data = fields["data"]
    return Frame(fields.get("event"), data if data == "[DONE]" else msgspec.json.decode(data))
