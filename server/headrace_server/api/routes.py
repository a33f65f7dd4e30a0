"""Route classes: every route is guarded unless it says that it is open.

A guarded route authenticates, checks the key's scope and the media type before a byte of the body is read, and parses
JSON itself: with a bound on nesting, without NaN, without lone surrogates. Guarding sits in the route and not in path
matching, so that no spelling of a path gets around it.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, get_type_hints

from fastapi import APIRouter, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from headrace_server.api.dependencies import authenticator_of
from headrace_server.api.error_mapping import ErrorEnvelope
from headrace_server.domain import Caller, Scope
from headrace_server.errors import ClientGone, InvalidRequest, NotAllowed, UnsupportedMediaType

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_ERROR_STATUSES = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {status: {"model": ErrorEnvelope} for status in _ERROR_STATUSES}


class JsonRequest(Request):
    """A request whose JSON is parsed strictly."""

    async def read(self) -> None:
        """Read the body, before the framework does: it would answer 400 to whatever reading raises.

        Raises:
            RequestError: too large or too slow.
            ClientGone: the client left before it had sent everything.
        """
        try:
            await self.body()
        except ClientDisconnect:
            raise ClientGone from None

    async def json(self) -> Any:
        body = await self.body()
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


class GuardedRoute(APIRoute):
    """Needs a caller who has the scope."""

    scope: ClassVar[Scope] = Scope.INFERENCE

    def answering(self) -> Handler:
        """What answers, once the caller is known and the body has been read."""
        return super().get_route_handler()

    def get_route_handler(self) -> Handler:
        handle = self.answering()

        async def guarded(request: Request) -> Response:
            caller = authenticator_of(request).authenticate(_presented_key(request))
            _check_scope(caller, self.scope)
            request.state.caller = caller
            json_request = JsonRequest(request.scope, request.receive)
            if request.method in ("POST", "PUT", "PATCH"):
                _check_media_type(request)
                await json_request.read()
            return await handle(json_request)

        return guarded


class AdminRoute(GuardedRoute):
    """For the operator."""

    scope: ClassVar[Scope] = Scope.ADMIN


class WireRoute(GuardedRoute):
    """Its endpoint takes the request and one wire model, the JSON body.

    FastAPI documents it from its signature as any other, but does not call it: resolving what an endpoint may depend on
    takes 0.15 ms, of an exchange that takes one or two in all.
    """

    def answering(self) -> Handler:
        endpoint = self.endpoint
        model: type[BaseModel] = get_type_hints(endpoint)["body"]

        async def answer(request: Request) -> Response:
            return await endpoint(request, _valid(model, await _json(request)))  # type: ignore[no-any-return]

        return answer


async def _json(request: Request) -> Any:
    try:
        return await request.json()
    except json.JSONDecodeError:
        raise InvalidRequest("the body is not valid JSON", code="invalid_json") from None


def _valid(model: type[BaseModel], document: Any) -> BaseModel:
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from None


class OpenRoute(APIRoute):
    """Anyone may call; for probes only."""


def guarded_router(tag: str, route_class: type[GuardedRoute] = GuardedRoute) -> APIRouter:
    """A router whose routes need a caller."""
    scheme = HTTPBearer(auto_error=False, description="An API key; `x-api-key: KEY` works too.")
    return APIRouter(route_class=route_class, tags=[tag], responses=ERROR_RESPONSES, dependencies=[Security(scheme)])


def open_router(tag: str) -> APIRouter:
    """A router whose routes anyone may call."""
    return APIRouter(route_class=OpenRoute, tags=[tag])


def _presented_key(request: Request) -> str | None:
    """The key of a request; None where a header is doubled, because two readers may believe different halves."""
    credentials, keys = request.headers.getlist("authorization"), request.headers.getlist("x-api-key")
    if len(credentials) > 1 or len(keys) > 1:
        return None
    scheme, _, key = "".join(credentials).partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return "".join(keys) or None


def _check_scope(caller: Caller, scope: Scope) -> None:
    """A gateway asks for answers, so it may."""
    has = caller.scopes | ({Scope.INFERENCE} if Scope.GATEWAY in caller.scopes else set())
    if scope not in has:
        raise NotAllowed(f"this key does not have the scope {scope.value!r}")


def _check_media_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("send JSON, with content-type: application/json")
