"""For whom, how urgently and until when: what a client may say, and that nothing of it widens what its key allows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from headrace_server.domain import Caller, EngineRequest, ModelId, Scope, ServiceClass, Tenant, TenantId
from headrace_server.tenancy.keys import KeyList
from headrace_server.tenancy.tenants import Tenants
from headrace_server.tenancy.terms import Terms
from tests.fakes.engine import FakeEngine, unary
from tests.fakes.server import ALIAS, CHAT_BODY, MODEL, build_stage, in_process

pytestmark = pytest.mark.timeout(60)

INTERACTIVE, STANDARD, BATCH = ServiceClass
KEYS = {name: f"key-of-{name}-0123456789" for name in ("all", "modest", "shut-out", "gateway")}
TENANTS = Tenants(
    [
        Tenant(TenantId("all")),
        Tenant(TenantId("modest"), classes=frozenset({STANDARD, BATCH}), models=frozenset({MODEL})),
        Tenant(TenantId("shut-out"), models=frozenset({ModelId("another")})),
    ]
)
TERMS = Terms(TENANTS, STANDARD, {BATCH: 3600.0}, b"k" * 32)
AUTHENTICATOR = KeyList(
    {
        key: Caller(TenantId(name), frozenset({Scope.GATEWAY if name == "gateway" else Scope.INFERENCE}))
        for name, key in KEYS.items()
    }
)


class Client:
    """Sends chats and sees what the engine is asked."""

    def __init__(self, http: httpx.AsyncClient, engine: FakeEngine) -> None:
        self.http, self.engine = http, engine

    async def answer(
        self, key: str = "all", headers: dict[str, str] | list[tuple[str, str]] | None = None, **body: object
    ) -> httpx.Response:
        sent = [("x-api-key", KEYS[key]), *(headers.items() if isinstance(headers, dict) else headers or [])]
        return await self.http.post("/v1/chat/completions", json={**CHAT_BODY, **body}, headers=sent)

    async def asked(self, key: str = "all", headers: dict[str, str] | None = None, **body: object) -> EngineRequest:
        """The request as the engine gets it."""
        response = await self.answer(key, headers, **body)
        assert response.status_code == 200, response.text
        return self.engine.requests[-1]


@asynccontextmanager
async def opened(terms: Terms) -> AsyncIterator[Client]:
    engine = FakeEngine(lambda _request: unary(text="hi"))
    async with in_process(build_stage(engine, authenticator=AUTHENTICATOR, terms=terms)) as http:
        yield Client(http, engine)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with opened(TERMS) as client:
        yield client


class TestClasses:
    """The header, `service_tier`, the tenant's classes."""

    async def test_a_request_that_says_nothing_has_the_default_class(self, client: Client) -> None:
        assert (await client.asked()).service_class is STANDARD
        async with opened(Terms(default_class=BATCH)) as other:
            assert (await other.asked()).service_class is BATCH

    @pytest.mark.parametrize("service_class", ServiceClass)
    async def test_the_header_names_it(self, client: Client, service_class: ServiceClass) -> None:
        asked = await client.asked(headers={"x-headrace-class": service_class})
        assert asked.service_class is service_class

    @pytest.mark.parametrize(
        ("tier", "service_class"),
        [("auto", STANDARD), ("default", STANDARD), ("priority", INTERACTIVE), ("flex", BATCH), (None, STANDARD)],
    )
    async def test_the_service_tier_is_one_too(
        self, client: Client, tier: str | None, service_class: ServiceClass
    ) -> None:
        assert (await client.asked(service_tier=tier)).service_class is service_class

    async def test_the_header_wins_over_the_service_tier(self, client: Client) -> None:
        asked = await client.asked(headers={"x-headrace-class": "batch"}, service_tier="priority")
        assert asked.service_class is BATCH

    async def test_a_tenant_gets_no_better_class_than_it_may_have(self, client: Client) -> None:
        asked = await client.asked("modest", {"x-headrace-class": "interactive"})
        assert asked.service_class is STANDARD
        assert (await client.asked("modest", service_tier="priority")).service_class is STANDARD
        assert (await client.asked("modest", service_tier="flex")).service_class is BATCH

    @pytest.mark.parametrize("name", ["", "Interactive", "urgent", "0", "interactive,batch"])
    async def test_an_unknown_class_is_400_and_names_the_header(self, client: Client, name: str) -> None:
        response = await client.answer(headers={"x-headrace-class": name})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "x-headrace-class")
        assert client.engine.requests == []

    async def test_two_classes_are_400(self, client: Client) -> None:
        response = await client.answer(headers=[("x-headrace-class", "batch")] * 2)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "x-headrace-class")

    @pytest.mark.parametrize("tier", ["", "scale", "PRIORITY", 1, ["priority"]])
    async def test_an_unknown_service_tier_is_400(self, client: Client, tier: object) -> None:
        response = await client.answer(service_tier=tier)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "service_tier")


class TestTenants:
    """Whom a request is for."""

    async def test_the_key_says_it(self, client: Client) -> None:
        assert (await client.asked("modest")).caller.tenant == "modest"

    async def test_only_a_gateway_is_heard_about_other_tenants(self, client: Client) -> None:
        headers = {"x-headrace-tenant": "modest", "x-headrace-class": "interactive"}
        heard = await client.asked("gateway", headers)
        assert (heard.caller.tenant, heard.service_class) == ("modest", STANDARD)
        ignored = await client.asked("all", headers)
        assert (ignored.caller.tenant, ignored.service_class) == ("all", INTERACTIVE)

    async def test_a_gateway_that_names_nobody_asks_for_itself(self, client: Client) -> None:
        assert (await client.asked("gateway")).caller.tenant == "gateway"

    @pytest.mark.parametrize(
        "headers",
        [
            [("x-headrace-tenant", ""), ("x-headrace-tenant", "a")],
            [("x-headrace-tenant", "a b")],
            [("x-headrace-tenant", "")],
            [("x-headrace-tenant", "x" * 65)],
        ],
    )
    async def test_a_gateway_that_names_nobody_clearly_is_400(
        self, client: Client, headers: list[tuple[str, str]]
    ) -> None:
        response = await client.answer("gateway", headers)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "x-headrace-tenant")

    async def test_a_tenant_has_its_own_salt_whatever_the_client_sends(self, client: Client) -> None:
        one, again, other = [
            await client.asked(key, cache_salt=salt) for key, salt in (("all", "x"), ("all", "y"), ("modest", "x"))
        ]
        assert one.cache_salt == again.cache_salt == TERMS.cache_salt(TenantId("all"))
        assert other.cache_salt != one.cache_salt
        assert "cache_salt" not in one.payload
        assert "priority" not in (await client.asked(priority=-5)).payload

    async def test_a_gateways_requests_are_salted_for_their_tenant(self, client: Client) -> None:
        direct = await client.asked("modest")
        assert (await client.asked("gateway", {"x-headrace-tenant": "modest"})).cache_salt == direct.cache_salt


class TestModels:
    """A tenant with a list of models."""

    async def test_what_it_may_not_use_is_not_there(self, client: Client) -> None:
        refused = await client.answer("shut-out")
        assert refused.status_code == 404
        unknown = await client.answer("shut-out", model=f"{MODEL}x")
        assert unknown.content == refused.content.replace(MODEL.encode(), f"{MODEL}x".encode())
        assert client.engine.requests == []

    async def test_what_it_may_use_has_all_its_names(self, client: Client) -> None:
        for name in (MODEL, ALIAS):
            assert (await client.asked("modest", model=name)).model == MODEL

    async def test_the_list_holds_what_it_may_use(self, client: Client) -> None:
        for key, ids in (("all", [MODEL]), ("modest", [MODEL]), ("shut-out", [])):
            listing = await client.http.get("/v1/models", headers={"x-api-key": KEYS[key]})
            assert [model["id"] for model in listing.json()["data"]] == ids

    async def test_one_model_is_there_for_those_who_may_use_it(self, client: Client) -> None:
        for key, status in (("modest", 200), ("shut-out", 404)):
            for name in (MODEL, ALIAS):
                response = await client.http.get(f"/v1/models/{name}", headers={"x-api-key": KEYS[key]})
                assert response.status_code == status
        headers = {"x-api-key": KEYS["gateway"], "x-headrace-tenant": "shut-out"}
        assert (await client.http.get("/v1/models", headers=headers)).json()["data"] == []


class TestDeadlines:
    """The header, the SDK's timeout, the class's default."""

    async def seconds(self, client: Client, headers: dict[str, str] | None = None, **body: object) -> float | None:
        """How long the engine has, rounded."""
        deadline = (await client.asked("all", headers, **body)).deadline
        return None if deadline is None else round(deadline - asyncio.get_running_loop().time())

    async def test_the_header_comes_first(self, client: Client) -> None:
        headers = {"x-headrace-deadline-ms": "9000", "x-stainless-read-timeout": "600", "x-headrace-class": "batch"}
        assert await self.seconds(client, headers) == 9

    @pytest.mark.parametrize(("text", "seconds"), [("600", 600), ("12.0", 12), ("1e2", 100)])
    async def test_the_sdks_timeout_is_a_hint(self, client: Client, text: str, seconds: float) -> None:
        assert await self.seconds(client, {"x-stainless-read-timeout": text}) == seconds

    @pytest.mark.parametrize("text", ["", "nan", "inf", "-1", "0", "soon", "86401", "1, 2"])
    async def test_a_hint_that_makes_no_sense_is_none(self, client: Client, text: str) -> None:
        assert await self.seconds(client, {"x-stainless-read-timeout": text}) is None

    async def test_the_sdks_timeout_says_nothing_of_a_stream(self, client: Client) -> None:
        await client.answer(headers={"x-stainless-read-timeout": "600"}, stream=True)
        (asked,) = client.engine.requests
        assert (asked.stream, asked.deadline) == (True, None)

    async def test_two_hints_are_none(self, client: Client) -> None:
        response = await client.answer(headers=[("x-stainless-read-timeout", "5"), ("x-stainless-read-timeout", "6")])
        assert response.status_code == 200
        assert client.engine.requests[-1].deadline is None

    async def test_a_class_may_have_a_default(self, client: Client) -> None:
        assert await self.seconds(client) is None
        assert await self.seconds(client, {"x-headrace-class": "batch"}) == 3600
        assert await self.seconds(client, service_tier="flex") == 3600
