"""`/admin/models` and `/admin/events`: what the operator wants to know about models, asked for or as it happens.

Any authenticated caller may ask for now; the `admin` scope comes with tenants. Nothing is fetched or started here.
"""

import asyncio
import json
from typing import Any, Self

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from headrace_models.trust import Trust
from headrace_server.api.dependencies import RuntimeDep, runtime_of
from headrace_server.api.routes import guarded_router
from headrace_server.api.sse import KEEP_ALIVE, SseResponse
from headrace_server.domain import CachedModel, ModelState, ModelStatus, StreamReply, WeightsStatus
from headrace_server.observability.events import Listener

router = guarded_router("admin")

_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


class Group(BaseModel):
    """A group of tensors (a layer, the embedding, ...) and how much of it is on this machine."""

    name: str
    present_bytes: int
    total_bytes: int


class Weights(BaseModel):
    """How far a model's weights are on this machine; `trust` is what is reached once everything is here."""

    key: str
    revision: str
    trust: Trust
    complete: bool
    present_bytes: int
    total_bytes: int
    fetched_bytes: int
    bytes_per_second: float
    eta_seconds: float | None
    problem: str
    groups: list[Group]


class AdminModel(BaseModel):
    """A model of the catalog. `weights` is null until the model has been found at its source, and where the engine
    loads none."""

    id: str
    aliases: list[str]
    state: ModelState
    detail: str
    source: str
    num_leases: int
    weights: Weights | None


class Cached(BaseModel):
    """A model that the store holds, wholly or in part, beside the catalog; `trust` is what may be claimed of the bytes
    that are there, `last_used` in seconds since the epoch."""

    key: str
    reference: str
    revision: str
    trust: Trust
    complete: bool
    present_bytes: int
    total_bytes: int
    allocated_bytes: int
    last_used: float
    pinned: bool


class AdminModels(BaseModel):
    """The catalog, and what else is in the model cache."""

    models: list[AdminModel]
    cached: list[Cached]


@router.get("/admin/models", summary="Models: states, weights, cache")
async def list_models(runtime: RuntimeDep) -> AdminModels:
    cached = await runtime.storage.cached()
    statuses = runtime.pool.statuses()
    ours = {status.weights.key for status in statuses if status.weights} | {status.source for status in statuses}
    others = [_cached(model) for model in cached if not ours & {model.key, model.reference}]
    return AdminModels(models=[_model(status) for status in statuses], cached=others)


@router.get(
    "/admin/events", summary="Changes of models, as server-sent events", response_class=Response, responses=_STREAM
)
async def events(request: Request) -> Response:
    """Each event is named `model`; its data is the model as in `/admin/models`. First one for every model, then one for
    every change of a state and, while weights come, at most four a second for each model."""
    runtime = runtime_of(request)

    async def listen() -> StreamReply:
        listener = runtime.feed.listen(runtime.pool.statuses())
        return StreamReply(ModelEvents(listener, keep_alive_seconds=runtime.header_hold_seconds))

    return SseResponse(listen, hold_seconds=runtime.header_hold_seconds, named_errors=True)


class ModelEvents:
    """An `EventStream` of what a listener hears, with a comment whenever there was nothing to say for so long."""

    def __init__(self, listener: Listener, *, keep_alive_seconds: float) -> None:
        self._listener = listener
        self._keep_alive_seconds = keep_alive_seconds

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            async with asyncio.timeout(self._keep_alive_seconds):
                changes = await self._listener.next()
        except TimeoutError:
            return KEEP_ALIVE
        if changes is None:
            raise StopAsyncIteration
        return b"".join(map(model_event, changes))

    async def aclose(self) -> None:
        self._listener.close()


def model_event(status: ModelStatus) -> bytes:
    """One server-sent event."""
    document = json.dumps(_model(status).model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
    return b"event: model\ndata: " + document.encode("utf-8", "replace") + b"\n\n"


def _model(status: ModelStatus) -> AdminModel:
    return AdminModel(
        id=status.id,
        aliases=list(status.aliases),
        state=status.state,
        detail=status.detail,
        source=status.source,
        num_leases=status.num_leases,
        weights=None if status.weights is None else _weights(status.weights),
    )


def _weights(weights: WeightsStatus) -> Weights:
    return Weights(
        key=weights.key,
        revision=weights.revision,
        trust=weights.trust,
        complete=weights.is_complete,
        present_bytes=weights.present_bytes,
        total_bytes=weights.total_bytes,
        fetched_bytes=weights.fetched_bytes,
        bytes_per_second=weights.bytes_per_second,
        eta_seconds=weights.eta_seconds,
        problem=weights.problem,
        groups=[
            Group(name=group.name, present_bytes=group.present_bytes, total_bytes=group.total_bytes)
            for group in weights.groups
        ],
    )


def _cached(model: CachedModel) -> Cached:
    return Cached(
        key=model.key,
        reference=model.reference,
        revision=model.revision,
        trust=model.trust,
        complete=model.is_complete,
        present_bytes=model.present_bytes,
        total_bytes=model.total_bytes,
        allocated_bytes=model.allocated_bytes,
        last_used=model.last_used,
        pinned=model.is_pinned,
    )
