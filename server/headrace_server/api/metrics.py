"""`/metrics` in Prometheus' text format: open, so only where strangers cannot reach it (loopback, or its own port)."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace_server.api.dependencies import RuntimeDep
from headrace_server.api.routes import open_router
from headrace_server.observability.metrics import CONTENT_TYPE, Metrics

router = open_router("metrics")


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(runtime: RuntimeDep) -> Response:
    return Response(runtime.metrics.exposition(), media_type=CONTENT_TYPE)


def metrics_app(metrics: Metrics) -> Starlette:
    """An application that serves nothing else, for `server.metrics_port`."""

    async def expose(_request: Request) -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    return Starlette(routes=[Route("/metrics", expose)])
