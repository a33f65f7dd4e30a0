"""`/admin/drain`: take the server out of service without losing a request. Afterwards its process ends."""

from typing import Annotated

from fastapi import Body, Request
from pydantic import Field

from headrace_server.api.admin_documents import Drained, DrainStatus
from headrace_server.api.dependencies import ending_of
from headrace_server.api.disconnect import unless_gone
from headrace_server.api.routes import AdminRoute, guarded_router
from headrace_server.api.schemas.common import Wire

router = guarded_router("admin", AdminRoute)

MAX_DEADLINE_SECONDS = 86_400.0

Deadline = Annotated[float, Field(ge=0, le=MAX_DEADLINE_SECONDS)]


class DrainRequest(Wire):
    """How long requests that were admitted may go on; null: `server.drain_seconds`."""

    deadline_seconds: Deadline | None = None


@router.post("/admin/drain", summary="Admit no more requests, wait for the others, end the server")
async def drain(request: Request, body: Annotated[DrainRequest | None, Body()] = None) -> Drained:
    """Answers once nothing is open any more. A client that leaves does not stop it; of several, the earliest deadline
    counts."""
    seconds = body.deadline_seconds if body is not None else None
    return Drained(cut=await unless_gone(request.receive, ending_of(request).drain(seconds)))


@router.get("/admin/drain", summary="Is the server being drained?")
async def status(request: Request) -> DrainStatus:
    ending = ending_of(request)
    return DrainStatus(draining=ending.is_draining, num_open=ending.num_open)
