"""The probes: three questions, and what each says while models load, once they are there, and when they fail."""

import asyncio
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from headrace_server import __version__
from headrace_server.api.health import can_serve
from headrace_server.api.metrics import metrics_app
from headrace_server.app import HttpOptions, create_app
from headrace_server.domain import ModelState, ModelStatus
from headrace_server.errors import EngineDied, EngineFault
from headrace_server.observability.metrics import CONTENT_TYPE, Metrics
from headrace_server.runtime import Runtime
from headrace_server.tenancy.keys import KeyList
from tests.fakes.engine import FakeEngine, unary
from tests.fakes.server import CHAT_BODY, MODEL, Stage, build_stage, in_process, plain_client, running

LOCKED = KeyList(["a-key-of-good-length"])


@asynccontextmanager
async def starting(engine: FakeEngine) -> AsyncIterator[tuple[Stage, httpx.AsyncClient]]:
    """A server whose model is loaded at startup; the test runs the pool."""
    parts = build_stage(engine, authenticator=LOCKED)

    @asynccontextmanager
    async def open_runtime() -> AsyncIterator[Runtime]:
        yield parts.runtime

    stage = Stage(create_app(open_runtime), parts.runtime)
    async with in_process(stage) as client:
        yield stage, client


async def test_the_probes_follow_a_model_to_its_end_of_startup_and_need_no_key() -> None:
    engine = FakeEngine()
    engine.start_gate = asyncio.Event()
    async with starting(engine) as (stage, client), running(stage.runtime.pool):
        await engine.starting.wait()
        assert (await client.get("/livez")).json() == {"status": "alive"}
        for path in ("/startupz", "/readyz"):
            response = await client.get(path)
            assert response.status_code == 503
            assert response.json() == {
                "status": "not ready",
                "reason": f"waiting for {MODEL} (loading)",
                "models": {MODEL: "loading"},
                "problems": {},
            }
        engine.start_gate.set()
        await stage.runtime.pool.until_settled()
        for path in ("/livez", "/startupz", "/readyz"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/readyz")).json() == {
            "status": "ready",
            "reason": None,
            "models": {MODEL: "ready"},
            "problems": {},
        }


async def test_before_anything_has_begun_the_server_is_starting() -> None:
    async with starting(FakeEngine()) as (_stage, client):
        response = await client.get("/startupz")
        assert (response.status_code, response.json()["reason"]) == (503, "starting")


async def test_a_model_that_is_loaded_on_demand_is_not_waited_for() -> None:
    engine = FakeEngine([unary(text="hi")])
    engine.start_gate = asyncio.Event()
    async with in_process(build_stage(engine, load=False)) as client:
        for path in ("/startupz", "/readyz"):
            assert (await client.get(path)).status_code == 200
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT_BODY))
        await engine.starting.wait()
        assert (await client.get("/readyz")).json()["models"] == {MODEL: "loading"}
        assert (await client.get("/readyz")).status_code == 200
        engine.start_gate.set()
        assert (await asking).json() == {"text": "hi"}


async def test_a_model_that_failed_to_load_ends_startup_but_the_server_is_not_ready() -> None:
    engine = FakeEngine()
    engine.start_error = EngineFault("no memory left")
    async with in_process(build_stage(engine)) as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/startupz")).status_code == 200
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["reason"] == f"no model can serve: {MODEL}: no memory left"
        assert response.json()["problems"] == {MODEL: "no memory left"}


async def test_an_engine_that_died_makes_the_server_unready_until_the_next_one_serves() -> None:
    engine = FakeEngine([EngineDied("gone"), unary(text="back")])
    async with in_process(build_stage(engine)) as client:
        assert (await client.get("/readyz")).status_code == 200
        engine.start_gate = asyncio.Event()
        engine.starting.clear()
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT_BODY))
        await engine.starting.wait()
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["models"]) == (503, {MODEL: "loading"})
        assert response.json()["problems"][MODEL].startswith("restarting: ")
        assert response.json()["problems"][MODEL] in response.json()["reason"]
        assert (await client.get("/startupz")).status_code == 200
        engine.start_gate.set()
        assert (await asking).json() == {"text": "back"}
        assert (await client.get("/readyz")).json()["problems"] == {}


async def test_a_server_that_drains_lives_but_is_not_ready() -> None:
    stage = build_stage(FakeEngine())
    async with in_process(stage) as client:
        stage.runtime.drain.begin()
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["reason"]) == (503, "draining")
        assert response.json()["models"] == {MODEL: "ready"}
        for path in ("/livez", "/startupz"):
            assert (await client.get(path)).status_code == 200


STATES = [(state, restarting) for state in ModelState for restarting in (False, True)]


@pytest.mark.parametrize(("state", "restarting"), STATES)
def test_only_failures_and_restarts_cannot_serve(state: ModelState, restarting: bool) -> None:
    status = ModelStatus(MODEL, state, "s", 0, is_restarting=restarting)
    assert can_serve(status) is (state is not ModelState.FAILED and not restarting)


async def test_versions_are_open() -> None:
    async with in_process(build_stage(FakeEngine(), authenticator=LOCKED)) as client:
        version = (await client.get("/version")).json()
        assert (version["version"], version["python"]) == (__version__, platform.python_version())
        assert set(version) == {"version", "python", "vllm"}


async def test_metrics_are_open_and_count_requests_by_route_and_not_by_what_was_sent() -> None:
    options = HttpOptions(open_metrics=True)
    async with in_process(build_stage(FakeEngine(), authenticator=LOCKED, options=options)) as client:
        await client.get("/v1/models/s3cret")
        await client.get("/s3cret")
        response = await client.get("/metrics")
        assert response.headers["content-type"] == CONTENT_TYPE
        lines = response.text.splitlines()
        assert 'headrace_requests_total{route="/v1/models/{model_id:path}",status="401"} 1.0' in lines
        assert 'headrace_requests_total{route="unmatched",status="404"} 1.0' in lines
        assert "vllm:num_requests_waiting 0.0" in lines
        assert "s3cret" not in response.text


async def test_the_metrics_port_serves_metrics_and_nothing_else() -> None:
    async with plain_client(metrics_app(Metrics())) as client:
        assert (await client.get("/metrics")).headers["content-type"] == CONTENT_TYPE
        assert (await client.get("/v1/models")).status_code == 404
