"""`/admin/models/{id}/load`, `unload`, `pin`, `unpin`: what the operator does with a model. Each answers with the model
as it stands then, in the form of `/admin/models`.

A client that leaves stops waiting, not the load. The end of the server ends the waiting too, in 503.
"""

from collections.abc import Coroutine
from typing import Any

from fastapi import Request

from headrace_server.api.admin_documents import AdminModel, model_document
from headrace_server.api.dependencies import ending_of, runtime_of
from headrace_server.api.disconnect import unless_gone
from headrace_server.api.routes import AdminRoute, guarded_router
from headrace_server.domain import ModelId
from headrace_server.errors import EngineDown
from headrace_server.runtime import Runtime

router = guarded_router("admin", AdminRoute)


@router.post("/admin/models/{model_id:path}/load", summary="Bring a model into memory")
async def load(model_id: str, request: Request) -> AdminModel:
    """Answers once the model serves. Idle models make room for it, as they would for a request."""
    return await _wait(request, model_id, _loaded(runtime_of(request), ModelId(model_id)))


@router.post("/admin/models/{model_id:path}/unload", summary="Take a model out of memory")
async def unload(model_id: str, request: Request) -> AdminModel:
    """Answers once the model's requests have ended and its engine has stopped. Later requests bring it back."""
    return await _wait(request, model_id, runtime_of(request).pool.unload(ModelId(model_id)))


@router.post("/admin/models/{model_id:path}/pin", summary="Keep a model in memory")
async def pin(model_id: str, request: Request) -> AdminModel:
    """The model is not unloaded to make room for another one, until the server ends."""
    return _pin(request, model_id, pinned=True)


@router.post("/admin/models/{model_id:path}/unpin", summary="Let a model leave memory")
async def unpin(model_id: str, request: Request) -> AdminModel:
    """The model may be unloaded to make room for another one."""
    return _pin(request, model_id, pinned=False)


async def _wait(request: Request, model_id: str, work: Coroutine[Any, Any, None]) -> AdminModel:
    await unless_gone(request.receive, ending_of(request).unless_ended(work))
    return _document(request, model_id)


async def _loaded(runtime: Runtime, model: ModelId) -> None:
    """Load a model; the operator is told why it fails, not where to ask."""
    try:
        await runtime.pool.load(model)
    except EngineDown as error:
        status = runtime.pool.status(model)
        if not status.detail:
            raise
        message = f"the model {status.id!r} could not be loaded: {status.detail}"
        raise EngineDown(message, retry_after_seconds=error.retry_after_seconds) from error


def _pin(request: Request, model_id: str, *, pinned: bool) -> AdminModel:
    runtime_of(request).pool.pin(ModelId(model_id), pinned=pinned)
    return _document(request, model_id)


def _document(request: Request, model_id: str) -> AdminModel:
    return model_document(runtime_of(request).pool.status(ModelId(model_id)))
