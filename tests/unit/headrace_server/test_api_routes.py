"""Default deny, media types and strict JSON: what is settled before a handler runs."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.routing import BaseRoute, Route
from starlette.types import Message

from headrace_server.api.middleware import HttpLimits
from headrace_server.api.routes import GuardedRoute, OpenRoute
from headrace_server.app import HttpOptions
from headrace_server.domain import Caller, Operation, Scope, TenantId
from headrace_server.tenancy.keys import KeyList
from tests.fakes.engine import FakeEngine, unary
from tests.fakes.server import ALIAS, CHAT_BODY, MODEL, Stage, build_stage, in_process

KEY = "a-key-of-good-length"
OPEN = {"/livez", "/readyz", "/startupz", "/version", "/metrics"}
JSON = {"content-type": "application/json"}
STAGE = build_stage(FakeEngine(), authenticator=KeyList([KEY]), options=HttpOptions(open_metrics=True))


def paths_of(stage: Stage) -> list[tuple[str, BaseRoute]]:
    return [(getattr(route, "path", repr(route)), route) for route in stage.app.routes]


GUARDED = [(path, route) for path, route in paths_of(STAGE) if path not in OPEN]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(lambda _request: unary(text="hi"))


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that asks for `KEY`; sends none by itself."""
    stage = build_stage(engine, authenticator=KeyList([KEY]))
    async with in_process(stage) as client:
        yield client


@pytest.fixture
async def trusted(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """The same client with the key."""
    client.headers["authorization"] = f"Bearer {KEY}"
    return client


def error_of(response: httpx.Response) -> dict[str, object]:
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert len(response.content) <= 2048
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


class TestDefaultDeny:
    """Every route that is not a probe needs a caller."""

    def test_only_the_probes_are_open(self) -> None:
        assert {path for path, route in paths_of(STAGE) if isinstance(route, OpenRoute)} == OPEN

    @pytest.mark.parametrize(("path", "route"), GUARDED, ids=[path for path, _ in GUARDED])
    def test_every_other_route_is_guarded(self, path: str, route: BaseRoute) -> None:
        assert isinstance(route, GuardedRoute), f"{path} is served by a {type(route).__name__}"

    def test_every_operation_has_a_guarded_route(self) -> None:
        assert {operation.value for operation in Operation} <= {path for path, _ in GUARDED}

    @pytest.mark.parametrize(("path", "route"), GUARDED, ids=[path for path, _ in GUARDED])
    @pytest.mark.parametrize("media_type", ["application/json", "text/plain"])
    async def test_without_a_key_the_answer_is_401_before_a_byte_of_the_body_is_read(
        self, path: str, route: Route, media_type: str
    ) -> None:
        sent: list[Message] = []

        async def receive() -> Message:
            raise AssertionError("the body was read")

        async def send(message: Message) -> None:
            sent.append(message)

        for method in route.methods or {"GET"}:
            sent.clear()
            scope = {
                "type": "http",
                "http_version": "1.1",
                "method": method,
                "path": path.replace("{model_id:path}", MODEL),
                "query_string": b"",
                "headers": [(b"content-type", media_type.encode()), (b"content-length", b"2")],
                "state": {"runtime": STAGE.runtime},
            }
            await STAGE.app(scope, receive, send)
            assert sent[0]["status"] == 401

    def test_metrics_are_not_served_on_the_main_port_unless_asked_for(self) -> None:
        assert "/metrics" not in dict(paths_of(build_stage(FakeEngine())))


BAD_CREDENTIALS: dict[str, list[tuple[str, str]]] = {
    "nothing": [],
    "blank": [("authorization", "")],
    "no key": [("authorization", "Bearer")],
    "blank key": [("authorization", "Bearer   ")],
    "wrong": [("authorization", "Bearer not-the-right-key")],
    "twice the word": [("authorization", f"Bearer Bearer {KEY}")],
    "other scheme": [("authorization", f"Basic {KEY}")],
    "bare": [("authorization", KEY)],
    "two keys": [("authorization", f"Bearer {KEY}, {KEY}")],
    "doubled": [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")],
    "right then wrong": [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")],
    "wrong then right": [("authorization", "Bearer x"), ("authorization", f"Bearer {KEY}")],
    "blank then right": [("authorization", ""), ("authorization", f"Bearer {KEY}")],
    "other header blank then right": [("x-api-key", ""), ("x-api-key", KEY)],
    "other header wrong": [("x-api-key", "x")],
    "other header blank": [("x-api-key", "")],
    "other header doubled": [("x-api-key", KEY), ("x-api-key", KEY)],
    "wrong beside right": [("authorization", "Bearer x"), ("x-api-key", KEY)],
}


@pytest.mark.parametrize("headers", BAD_CREDENTIALS.values(), ids=list(BAD_CREDENTIALS))
async def test_whatever_is_wrong_with_the_key_the_answer_is_the_same_401(
    client: httpx.AsyncClient, headers: list[tuple[str, str]]
) -> None:
    response = await client.get("/v1/models", headers=headers)
    expected = await client.get("/v1/models")
    assert response.status_code == expected.status_code == 401
    assert response.content == expected.content
    assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(response)["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY} "},
        {"x-api-key": KEY},
        {"authorization": f"Bearer {KEY}", "x-api-key": "x"},
    ],
)
async def test_the_right_key_opens_in_either_header(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await client.get("/v1/models", headers=headers)).status_code == 200


class TestScopes:
    """What a key is for."""

    @pytest.mark.parametrize(("path", "route"), GUARDED, ids=[path for path, _ in GUARDED])
    def test_every_admin_route_is_for_operators_and_every_other_for_inference(
        self, path: str, route: GuardedRoute
    ) -> None:
        assert route.scope is (Scope.ADMIN if path.startswith("/admin/") else Scope.INFERENCE)

    @pytest.mark.parametrize(
        ("scopes", "statuses"),
        [
            ({Scope.INFERENCE}, (200, 403)),
            ({Scope.ADMIN}, (403, 200)),
            ({Scope.GATEWAY}, (200, 403)),
            ({Scope.INFERENCE, Scope.ADMIN}, (200, 200)),
            (set(), (403, 403)),
        ],
    )
    async def test_a_key_opens_what_it_is_for(self, scopes: set[Scope], statuses: tuple[int, int]) -> None:
        caller = Caller(TenantId("a"), frozenset(scopes))
        async with in_process(build_stage(FakeEngine(), authenticator=KeyList({KEY: caller}))) as client:
            answers = [await client.get(path, headers={"x-api-key": KEY}) for path in ("/v1/models", "/admin/models")]
        assert tuple(answer.status_code for answer in answers) == statuses
        assert all(error_of(answer)["code"] == "not_allowed" for answer in answers if answer.status_code == 403)

    async def test_a_key_without_the_scope_is_refused_before_the_body_is_read(self) -> None:
        caller = Caller(TenantId("a"), frozenset({Scope.INFERENCE}))
        async with in_process(build_stage(FakeEngine(), authenticator=KeyList({KEY: caller}))) as client:
            answer = await client.post("/admin/drain", content=b"{", headers={"x-api-key": KEY})
        assert answer.status_code == 403


async def test_an_unknown_url_is_404(trusted: httpx.AsyncClient) -> None:
    for path in ("/", "/v1", "/v2/models", "/v1/chat/completion", "/docs", "/redoc", "/metrics", "/livez/", "//livez"):
        response = await trusted.get(path)
        assert response.status_code == 404, path
        assert error_of(response)["code"] == "unknown_url"


async def test_a_wrong_method_is_405_and_names_the_right_one(trusted: httpx.AsyncClient) -> None:
    for method, path, allow in (("GET", "/v1/chat/completions", "POST"), ("DELETE", "/v1/models", "GET")):
        response = await trusted.request(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, allow)
        assert error_of(response)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "media_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "json"]
)
async def test_another_media_type_is_415(
    trusted: httpx.AsyncClient, engine: FakeEngine, media_type: str | None
) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    response = await trusted.post("/v1/chat/completions", content=json.dumps(CHAT_BODY), headers=headers)
    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"
    assert engine.requests == []


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_may_be_spelt_as_clients_spell_it(trusted: httpx.AsyncClient, media_type: str) -> None:
    headers = {"content-type": media_type}
    response = await trusted.post("/v1/chat/completions", content=json.dumps(CHAT_BODY), headers=headers)
    assert response.status_code == 200


BAD_JSON = {
    "empty": b"",
    "broken": b'{"model": ',
    "text": b"hello",
    "two documents": b"{} {}",
    "single quotes": b"{'model': 'm'}",
    "trailing comma": b'{"model": "m",}',
    "null": b"null",
    "10,000 levels of lists": b"[" * 10_000 + b"]" * 10_000,
    "10,000 levels of objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "10,000 levels without end": b"[" * 10_000,
    "lone surrogate": b'{"model": "\\ud800", "messages": []}',
    "lone low surrogate": b'{"model": "\\udc00x", "messages": []}',
    "encoded surrogate": b'{"model": "\xed\xa0\x80", "messages": []}',
    "not UTF-8": b'{"model": "\xff"}',
    "UTF-16": '{"model": "m"}'.encode("utf-16"),
    "NaN": b'{"model": "m", "temperature": NaN}',
    "infinity": b'{"model": "m", "temperature": -Infinity}',
    "control character": b'{"model": "a\x00b"}',
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=list(BAD_JSON))
async def test_a_body_that_is_no_json_is_a_plain_400(
    trusted: httpx.AsyncClient, engine: FakeEngine, body: bytes
) -> None:
    response = await trusted.post("/v1/chat/completions", content=body, headers=JSON)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("invalid_json", None)
    assert "JSON" in str(error["message"])
    assert engine.requests == []


@pytest.mark.parametrize("body", [b"[]", b"17", b'"text"', b"true", b"{}", b'{"model": null}', b'{"model": "m"}'])
async def test_json_that_is_no_request_is_400(trusted: httpx.AsyncClient, engine: FakeEngine, body: bytes) -> None:
    response = await trusted.post("/v1/chat/completions", content=body, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"
    assert engine.requests == []


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"1" * 5000, b"1e-999999999"])
async def test_an_absurd_number_is_400_or_harmless(
    trusted: httpx.AsyncClient, engine: FakeEngine, number: bytes
) -> None:
    body = json.dumps({**CHAT_BODY, "seed": 1, "temperature": 0.5}).encode()
    for field in (b'"seed": 1', b'"temperature": 0.5'):
        name = field.partition(b":")[0]
        content = body.replace(field, name + b": " + number)
        response = await trusted.post("/v1/chat/completions", content=content, headers=JSON)
        assert response.status_code in (200, 400)
    assert all(request.payload["temperature"] in (0, 0.5) for request in engine.requests)


async def test_an_infinite_number_does_not_hide_in_a_free_form_document(
    trusted: httpx.AsyncClient, engine: FakeEngine
) -> None:
    tool = b'{"type": "function", "function": {"name": "f", "parameters": {"maximum": 1e999}}}'
    content = json.dumps(CHAT_BODY).encode()[:-1] + b', "tools": [' + tool + b"]}"
    response = await trusted.post("/v1/chat/completions", content=content, headers=JSON)
    assert response.status_code == 400
    assert engine.requests == []


async def test_a_problem_is_named_by_its_place_and_the_input_is_not_echoed(trusted: httpx.AsyncClient) -> None:
    body = {**CHAT_BODY, "messages": [{"role": "s3cret", "content": "x"}]}
    response = await trusted.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == "messages.0.role"
    assert "s3cret" not in response.text


async def test_a_handlers_defect_is_a_500_that_leaks_nothing(
    trusted: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def submit(_request: object) -> None:
        raise RuntimeError("s3cret at /srv/secret/path.py")

    monkeypatch.setattr(engine, "submit", submit)
    response = await trusted.post("/v1/chat/completions", json=CHAT_BODY, headers={"x-request-id": "mine"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "mine"
    assert error_of(response) == {
        "message": "internal error",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }


BODIES: dict[Operation, dict[str, object]] = {
    Operation.CHAT: CHAT_BODY,
    Operation.COMPLETION: {"prompt": "x"},
    Operation.RESPONSE: {"input": "x"},
    Operation.MESSAGE: {"messages": CHAT_BODY["messages"], "max_tokens": 5},
    Operation.COUNT_TOKENS: {"messages": CHAT_BODY["messages"]},
    Operation.EMBEDDING: {"input": "x"},
    Operation.RERANK: {"query": "x", "documents": ["y"]},
    Operation.SCORE: {"text_1": "x", "text_2": "y"},
    Operation.TOKENIZE: {"prompt": "x"},
    Operation.DETOKENIZE: {"tokens": [1]},
}


@pytest.mark.parametrize("operation", Operation)
async def test_each_route_asks_the_engine_for_its_own_operation(
    trusted: httpx.AsyncClient, engine: FakeEngine, operation: Operation
) -> None:
    body = {**BODIES[operation], "model": ALIAS}
    response = await trusted.post(operation.value, json=body, headers={"x-request-id": "mine"})
    assert (response.status_code, response.json()) == (200, {"text": "hi"})
    (request,) = engine.requests
    assert (request.operation, request.model, request.request_id) == (operation, MODEL, "mine")
    assert request.payload == {**body, "model": MODEL}
    assert request.stream is False


async def test_the_catalog_lists_models_and_finds_them_by_id_and_alias(trusted: httpx.AsyncClient) -> None:
    listing = (await trusted.get("/v1/models")).json()
    (shown,) = listing["data"]
    assert listing["object"] == "list"
    assert (shown["id"], shown["object"], shown["state"]) == (MODEL, "model", "ready")
    assert (shown["aliases"], shown["max_model_len"]) == ([ALIAS], 4096)
    for name in (MODEL, ALIAS):
        assert (await trusted.get(f"/v1/models/{name}")).json() == shown


@pytest.mark.parametrize("name", ["other", "org/other", "%2e%2e/x", "x" * 5000, "%00", "%F0%9F%98%80"])
async def test_an_unknown_model_is_404_with_its_own_code(trusted: httpx.AsyncClient, name: str) -> None:
    response = await trusted.get(f"/v1/models/{name}")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"
    response = await trusted.post("/v1/chat/completions", json={**CHAT_BODY, "model": name[:256]})
    assert response.status_code == 404
    assert error_of(response)["param"] == "model"


async def test_the_contract_is_served_as_a_document_that_names_every_operation(trusted: httpx.AsyncClient) -> None:
    document = (await trusted.get("/openapi.json")).json()
    assert {operation.value for operation in Operation} <= set(document["paths"])
    assert document["paths"]["/v1/chat/completions"]["post"]["security"]


async def test_pages_of_other_origins_may_call_only_where_that_is_set() -> None:
    headers = {"origin": "https://page.example", "access-control-request-method": "POST"}
    async with in_process(build_stage(FakeEngine())) as client:
        assert (await client.options("/v1/chat/completions", headers=headers)).status_code == 405
    options = HttpOptions(cors_origins=("https://page.example",))
    async with in_process(build_stage(FakeEngine(), options=options)) as client:
        response = await client.options("/v1/chat/completions", headers=headers)
        assert response.headers["access-control-allow-origin"] == "https://page.example"
        refused = await client.options("/v1/models", headers={**headers, "origin": "https://other.example"})
        assert "access-control-allow-origin" not in refused.headers


async def test_a_page_can_read_the_refusals_of_the_boundary() -> None:
    options = HttpOptions(limits=HttpLimits(max_body_bytes=1), cors_origins=("https://page.example",))
    async with in_process(build_stage(FakeEngine(), options=options)) as client:
        refused = await client.post(
            "/v1/chat/completions", headers={"origin": "https://page.example"}, json={"model": "m"}
        )
    assert refused.status_code == 413
    assert refused.headers["access-control-allow-origin"] == "https://page.example"
    assert refused.headers["x-request-id"]
