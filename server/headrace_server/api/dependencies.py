"""What handlers get at: the runtime behind the application and the caller of the request, typed."""

from typing import Annotated, cast

from fastapi import Depends, Request

from headrace_server.api.ending import Ending
from headrace_server.domain import Caller
from headrace_server.errors import Unauthenticated
from headrace_server.runtime import Runtime
from headrace_server.tenancy.keys import Authenticator


def runtime_of(request: Request) -> Runtime:
    """The runtime that the lifespan opened."""
    return cast(Runtime, request.state.runtime)


def ending_of(request: Request) -> Ending:
    """The way out of this server."""
    return cast(Ending, request.state.ending)


def authenticator_of(request: Request) -> Authenticator:
    """Who decides about keys."""
    return runtime_of(request).authenticator


def caller_of(request: Request) -> Caller:
    """The caller that the guarded route has set.

    Raises:
        Unauthenticated: the route is not guarded; nothing is served without a caller.
    """
    caller = getattr(request.state, "caller", None)
    if not isinstance(caller, Caller):
        raise Unauthenticated("this route has no caller")
    return caller


RuntimeDep = Annotated[Runtime, Depends(runtime_of)]
