"""`/openapi.json`: the contract as a document, for callers."""

from fastapi import Request
from starlette.responses import JSONResponse, Response

from headrace_server.api.routes import guarded_router

router = guarded_router("contract")


@router.get("/openapi.json", summary="This API as an OpenAPI document")
async def openapi(request: Request) -> Response:
    return JSONResponse(request.app.openapi())
