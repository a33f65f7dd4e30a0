"""`/v1/models`: the catalog as far as the caller may use it, in OpenAI's shape with each model's state beside it."""

from fastapi import Request
from pydantic import BaseModel

from headrace_server.api.dependencies import runtime_of
from headrace_server.api.request_class import check_model, tenant_of
from headrace_server.api.routes import guarded_router
from headrace_server.domain import ModelId, ModelState, ModelStatus

router = guarded_router("models")


class Model(BaseModel):
    """A model; what comes after `owned_by` goes beyond OpenAI's fields. `max_model_len` is in tokens; `eta_seconds`:
    until a model on its way serves, as far as anybody knows; `retry_in_seconds`: until one that failed is tried again.
    """

    id: str
    object: str = "model"
    created: int
    owned_by: str = "headrace"
    aliases: list[str]
    state: ModelState
    detail: str
    max_model_len: int | None
    eta_seconds: float | None
    retry_in_seconds: float | None


class ModelList(BaseModel):
    """All models of the catalog."""

    object: str = "list"
    data: list[Model]


@router.get("/v1/models", summary="List models")
async def list_models(request: Request) -> ModelList:
    models = tenant_of(request).models
    statuses = runtime_of(request).pool.statuses()
    return ModelList(data=[_model(status) for status in statuses if models is None or status.id in models])


@router.get("/v1/models/{model_id:path}", summary="One model")
async def get_model(model_id: str, request: Request) -> Model:
    pool = runtime_of(request).pool
    check_model(pool, tenant_of(request), model_id)
    return _model(pool.status(ModelId(model_id)))


def _model(status: ModelStatus) -> Model:
    return Model(
        id=status.id,
        created=status.created,
        aliases=list(status.aliases),
        state=status.state,
        detail=status.detail,
        max_model_len=status.max_model_len,
        eta_seconds=status.eta_seconds,
        retry_in_seconds=status.retry_in_seconds,
    )
