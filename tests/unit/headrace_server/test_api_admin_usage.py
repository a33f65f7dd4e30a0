"""`GET /admin/usage`."""

from datetime import date, timedelta

import pytest

from headrace_server.domain import Caller, ModelId, Scope, TenantId
from headrace_server.tenancy.keys import KeyList
from headrace_server.tenancy.usage import Ledger
from tests.fakes.engine import FakeEngine
from tests.fakes.server import build_stage, in_process

TODAY = date(2026, 3, 1)


def booked() -> Ledger:
    now = TODAY - timedelta(days=40)
    book = Ledger(day=lambda: now)
    book.add(TenantId("old"), ModelId("m"), 1, 1, 1)
    now = TODAY
    for _ in range(2):
        book.add(TenantId("a"), ModelId("m"), 10, 2, 3)
    return book


async def test_usage_is_shown_by_day_tenant_and_model() -> None:
    async with in_process(build_stage(FakeEngine(), ledger=booked())) as client:
        report = (await client.get("/admin/usage")).json()
        assert report == {
            "usage": [
                {
                    "day": "2026-03-01",
                    "tenant": "a",
                    "model": "m",
                    "requests": 2,
                    "computed_prompt_tokens": 20,
                    "cached_prompt_tokens": 4,
                    "output_tokens": 6,
                }
            ]
        }
        longer = (await client.get("/admin/usage?days=41")).json()
        assert [count["tenant"] for count in longer["usage"]] == ["old", "a"]


@pytest.mark.parametrize("days", ["0", "-1", "401", "all", "1.5"])
async def test_a_number_of_days_that_makes_no_sense_is_400(days: str) -> None:
    async with in_process(build_stage(FakeEngine())) as client:
        response = await client.get(f"/admin/usage?days={days}")
        assert (response.status_code, response.json()["error"]["param"]) == (400, "days")


async def test_tenants_do_not_see_each_others_usage() -> None:
    key = "a-key-of-good-length"
    authenticator = KeyList({key: Caller(TenantId("a"), frozenset({Scope.INFERENCE}))})
    async with in_process(build_stage(FakeEngine(), authenticator=authenticator)) as client:
        assert (await client.get("/admin/usage", headers={"x-api-key": key})).status_code == 403
