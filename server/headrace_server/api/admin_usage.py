"""`/admin/usage`: what each tenant has used, by model and day."""

from typing import Annotated

from fastapi import Query, Request

from headrace_server.api.admin_documents import UsageCount, UsageReport
from headrace_server.api.dependencies import runtime_of
from headrace_server.api.routes import AdminRoute, guarded_router
from headrace_server.tenancy.usage import MAX_DAYS, Usage, UsageKey

router = guarded_router("admin", AdminRoute)

DEFAULT_DAYS = 30


@router.get("/admin/usage", summary="Tokens per tenant, model and day")
async def usage(request: Request, days: Annotated[int, Query(ge=1, le=MAX_DAYS)] = DEFAULT_DAYS) -> UsageReport:
    """Of the last days, today among them (UTC), in order. Requests count when they end."""
    counts = runtime_of(request).ledger.counts(days)
    return UsageReport(usage=[_count(key, used) for key, used in counts.items()])


def _count(key: UsageKey, used: Usage) -> UsageCount:
    return UsageCount(
        day=key.day,
        tenant=key.tenant,
        model=key.model,
        requests=used.num_requests,
        computed_prompt_tokens=used.num_computed_tokens,
        cached_prompt_tokens=used.num_cached_tokens,
        output_tokens=used.num_output_tokens,
    )
