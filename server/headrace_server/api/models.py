"""`/v1/models`: the catalog, in OpenAI's shape with each model's state beside it."""

from pydantic import BaseModel

from headrace_server.api.dependencies import RuntimeDep
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
async def list_models(runtime: RuntimeDep) -> ModelList:
    return ModelList(data=[_model(status) for status in runtime.pool.statuses()])


@router.get("/v1/models/{model_id:path}", summary="One model")
async def get_model(model_id: str, runtime: RuntimeDep) -> Model:
    return _model(runtime.pool.status(ModelId(model_id)))


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
