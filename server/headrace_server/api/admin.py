"""`/admin/models` and `/admin/events`: what the operator wants to know about models, asked for or as it happens.

Callers need the scope `admin`. Nothing is fetched or started here; what operators may do is in `admin_models` and
`admin_drain`.
"""

import asyncio
import json
from typing import Any, Self

from fastapi import Request
from starlette.responses import Response

from headrace_server.api.admin_documents import AdminModels, Memory, cached_document, model_document
from headrace_server.api.dependencies import RuntimeDep, runtime_of
from headrace_server.api.routes import AdminRoute, guarded_router
from headrace_server.api.sse import KEEP_ALIVE, SseResponse
from headrace_server.domain import ModelStatus, StreamReply
from headrace_server.observability.events import Listener

router = guarded_router("admin", AdminRoute)

_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


@router.get("/admin/models", summary="Models: states, memory, weights, cache")
async def list_models(runtime: RuntimeDep) -> AdminModels:
    cached = await runtime.storage.cached()
    statuses = runtime.pool.statuses()
    ours = {status.weights.key for status in statuses if status.weights} | {status.source for status in statuses}
    return AdminModels(
        memory=Memory(
            budget_bytes=runtime.pool.memory_budget_bytes,
            used_bytes=sum(status.memory_bytes or 0 for status in statuses),
        ),
        models=[model_document(status) for status in statuses],
        cached=[cached_document(model) for model in cached if not ours & {model.key, model.reference}],
    )


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
    document = json.dumps(model_document(status).model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
    return b"event: model\ndata: " + document.encode("utf-8", "replace") + b"\n\n"
