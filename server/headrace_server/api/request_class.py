"""For whom, how urgently and until when a request is to be served: headers and body, within what its caller may ask.

Nothing that a client says widens what its key allows: a class that its tenant may not have becomes the next lesser
one, a tenant is heard from gateways only, and salts are made here.
"""

import asyncio
import math
import time
from dataclasses import dataclass, replace

from fastapi import Request

from headrace_server.api.dependencies import caller_of, runtime_of
from headrace_server.api.schemas.common import WireRequest
from headrace_server.domain import Caller, ModelId, Scope, ServiceClass, Tenant, TenantId
from headrace_server.engine.pool import EnginePool
from headrace_server.errors import InvalidRequest, ModelNotFound
from headrace_server.tenancy.keys import TENANT_NAME

CLASS_HEADER = "x-headrace-class"
TENANT_HEADER = "x-headrace-tenant"
DEADLINE_HEADER = "x-headrace-deadline-ms"
TIMEOUT_HINT_HEADER = "x-stainless-read-timeout"  # of the OpenAI and Anthropic SDKs, in seconds
MAX_DEADLINE_MS = 86_400_000

SERVICE_TIERS = {
    "auto": ServiceClass.STANDARD,
    "default": ServiceClass.STANDARD,
    "priority": ServiceClass.INTERACTIVE,
    "flex": ServiceClass.BATCH,
}


@dataclass(frozen=True, slots=True)
class RequestTerms:
    """How a request is to be served. `deadline` is on the event loop's clock, counted from the request's arrival."""

    caller: Caller
    tenant: Tenant
    service_class: ServiceClass
    deadline: float | None
    cache_salt: str | None


def terms_of(request: Request, body: WireRequest, caller: Caller) -> RequestTerms:
    """Read them.

    Raises:
        InvalidRequest: a header that makes no sense.
        ModelNotFound: the tenant may not use the model, or there is none.
    """
    runtime = runtime_of(request)
    terms = runtime.terms
    caller = _on_behalf(request, caller)
    tenant = terms.tenants.tenant(caller.tenant)
    check_model(runtime.pool, tenant, body.model)
    service_class = terms.service_class(tenant, _asked_class(request, body))
    seconds = _deadline_seconds(request, is_unary=not getattr(body, "stream", None))
    if seconds is None:
        seconds = terms.deadline_seconds.get(service_class)
    return RequestTerms(caller, tenant, service_class, _on_the_clock(request, seconds), terms.cache_salt(caller.tenant))


def tenant_of(request: Request) -> Tenant:
    """The tenant that a guarded request is for.

    Raises:
        InvalidRequest: a gateway names it wrongly.
    """
    return runtime_of(request).terms.tenants.tenant(_on_behalf(request, caller_of(request)).tenant)


def check_model(pool: EnginePool, tenant: Tenant, name: str) -> None:
    """Raise ModelNotFound where a tenant may not use a model, in the words in which the pool says there is none."""
    if tenant.models is not None and pool.status(ModelId(name)).id not in tenant.models:
        message = f"the model {name[:100]!r} does not exist here; GET /v1/models lists those that do"
        raise ModelNotFound(message, param="model")


def _on_behalf(request: Request, caller: Caller) -> Caller:
    """A gateway's request is its tenant's; whatever others write there is not heard."""
    if Scope.GATEWAY not in caller.scopes:
        return caller
    name = _only(request, TENANT_HEADER)
    if name is None:
        return caller
    if not TENANT_NAME.fullmatch(name):
        raise InvalidRequest(f"{TENANT_HEADER} is not the name of a tenant", param=TENANT_HEADER)
    return replace(caller, tenant=TenantId(name))


def _asked_class(request: Request, body: WireRequest) -> ServiceClass | None:
    """The header's class, else that of `service_tier`, which the wire model has checked."""
    name = _only(request, CLASS_HEADER)
    if name is None:
        return SERVICE_TIERS.get(getattr(body, "service_tier", None) or "")
    try:
        return ServiceClass(name)
    except ValueError:
        raise InvalidRequest(f"{CLASS_HEADER} must be one of {', '.join(ServiceClass)}", param=CLASS_HEADER) from None


def _deadline_seconds(request: Request, *, is_unary: bool) -> float | None:
    """How long after its arrival nobody wants the answer any more; None: the request does not say.

    An SDK's timeout is between two reads: of a stream it says nothing.
    """
    text = _only(request, DEADLINE_HEADER)
    if text is None:
        return _hinted_seconds(request) if is_unary else None
    # `int` takes other digits and underscores too, and as many as there are.
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_DEADLINE_MS))):
        raise _bad_deadline()
    if not 1 <= int(text) <= MAX_DEADLINE_MS:
        raise _bad_deadline()
    return int(text) / 1000


def _hinted_seconds(request: Request) -> float | None:
    """The timeout of the client's SDK; a hint, so nonsense is none."""
    given = request.headers.getlist(TIMEOUT_HINT_HEADER)
    try:
        (seconds,) = map(float, given)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 < seconds <= MAX_DEADLINE_MS / 1000 else None


def _on_the_clock(request: Request, seconds: float | None) -> float | None:
    if seconds is None:
        return None
    age: float = time.perf_counter() - request.state.arrived
    return asyncio.get_running_loop().time() - age + seconds


def _only(request: Request, name: str) -> str | None:
    """A header's value; None where it is missing.

    Raises:
        InvalidRequest: it is doubled, and two readers may believe different ones.
    """
    given = request.headers.getlist(name)
    if len(given) > 1:
        raise InvalidRequest(f"{name} is doubled", param=name)
    return given[0] if given else None


def _bad_deadline() -> InvalidRequest:
    return InvalidRequest(
        f"{DEADLINE_HEADER} must be a whole number of milliseconds, 1 to {MAX_DEADLINE_MS}", param=DEADLINE_HEADER
    )
