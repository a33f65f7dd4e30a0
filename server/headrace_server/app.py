"""The ASGI applications: routers, error handlers and the boundary around them.

`create_app` takes a function that opens a runtime, so that tests pass one built on fakes; the runtime lives as long
as the application's lifespan. `create_control_app` is what the operator of this machine speaks to: `/admin` and the
probes of the same runtime, without keys, because whoever can open its socket is the operator.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypedDict

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from headrace_server import __version__
from headrace_server.api import (
    admin,
    admin_drain,
    admin_models,
    admin_queue,
    admin_usage,
    health,
    inference,
    metrics,
    models,
    openapi,
)
from headrace_server.api.ending import Ending
from headrace_server.api.error_mapping import error_response, http_error, validation_error
from headrace_server.api.middleware import HttpLimits, RequestBoundary
from headrace_server.errors import RequestError
from headrace_server.runtime import Runtime
from headrace_server.tenancy.keys import OpenDoor

OpenRuntime = Callable[[], AbstractAsyncContextManager[Runtime]]

_OPERATORS = (admin.router, admin_models.router, admin_queue.router, admin_usage.router, admin_drain.router)


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """How the HTTP front behaves."""

    limits: HttpLimits = field(default_factory=HttpLimits)
    cors_origins: tuple[str, ...] = ()
    open_metrics: bool = False
    access_log: bool = True


class LifespanState(TypedDict):
    """What every request finds under `request.state`."""

    runtime: Runtime
    ending: Ending


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[LifespanState]]


def create_app(open_runtime: OpenRuntime, options: HttpOptions | None = None, ending: Ending | None = None) -> FastAPI:
    """The application. The runtime is opened when the server starts and closed when it stops.

    Args:
        open_runtime: returns the context manager of a runtime.
        options: bounds, CORS origins, whether `/metrics` is served here, the access log.
        ending: how the process ends; None: it does not.
    """
    options = options or HttpOptions()
    way_out = ending or Ending()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[LifespanState]:
        async with open_runtime() as runtime:
            way_out.attach(runtime.drain)
            try:
                yield {"runtime": runtime, "ending": way_out}
            finally:
                await way_out.close()

    routers = (inference.router, models.router, *_OPERATORS, health.router, openapi.router)
    app = _application(lifespan, routers, options)
    if options.open_metrics:
        app.include_router(metrics.router)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[
                "x-request-id",
                "x-headrace-model-state",
                "x-headrace-queue-ms",
                "retry-after",
                "retry-after-ms",
            ],
        )
    return app


def create_control_app(runtime: Runtime, ending: Ending, options: HttpOptions | None = None) -> FastAPI:
    """The operator's application on a runtime that somebody else opened."""
    mine = replace(runtime, authenticator=OpenDoor())

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[LifespanState]:
        yield {"runtime": mine, "ending": ending}

    return _application(lifespan, (*_OPERATORS, health.router), options or HttpOptions())


def _application(lifespan: Lifespan, routers: Iterable[APIRouter], options: HttpOptions) -> FastAPI:
    app = FastAPI(
        title="Headrace",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    for router in routers:
        app.include_router(router)
    _handle_errors(app)
    app.add_middleware(RequestBoundary, limits=options.limits, on_done=_count_request, access_log=options.access_log)
    return app


def _handle_errors(app: FastAPI) -> None:
    """Every failure leaves in the one envelope."""

    @app.exception_handler(RequestError)
    async def on_request_error(_request: Request, error: RequestError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(_request: Request, error: RequestValidationError) -> Response:
        return error_response(validation_error(error))

    @app.exception_handler(HTTPException)
    async def on_http_error(_request: Request, error: HTTPException) -> Response:
        return http_error(error)


def _count_request(scope: Scope, status: int, seconds: float) -> None:
    runtime = scope["state"].get("runtime")
    if runtime is not None:
        route = getattr(scope.get("route"), "path", "unmatched")
        runtime.metrics.request_done(route=route, status=status, seconds=seconds)
