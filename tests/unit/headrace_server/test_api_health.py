"""The probes: three questions, and what each says while models load, once they are there, and when they fail."""

import asyncio
import platform

from headrace_server import __version__
from headrace_server.api.metrics import metrics_app
from headrace_server.app import HttpOptions
from headrace_server.errors import EngineDown, EngineFault
from headrace_server.observability.metrics import CONTENT_TYPE, Metrics
from headrace_server.tenancy.keys import KeyList
from tests.fakes.engine import FakeEngine, unary
from tests.fakes.server import CHAT_BODY, MODEL, build_stage, in_process, plain_client

LOCKED = KeyList(["a-key-of-good-length"])


async def test_the_probes_follow_a_model_from_cold_to_ready_and_need_no_key() -> None:
    engine = FakeEngine()
    engine.start_gate = asyncio.Event()
    stage = build_stage(engine, authenticator=LOCKED, load=False)
    async with in_process(stage) as client:
        for path in ("/startupz", "/readyz"):
            response = await client.get(path)
            assert response.status_code == 503
            assert response.json() == {
                "status": "not ready",
                "reason": f"waiting for {MODEL} (cold)",
                "models": {MODEL: "cold"},
            }
        loading = asyncio.create_task(stage.runtime.pool.load_all())
        await engine.starting.wait()
        assert (await client.get("/livez")).json() == {"status": "alive"}
        assert (await client.get("/readyz")).json()["reason"] == f"waiting for {MODEL} (loading)"
        engine.start_gate.set()
        await loading
        for path in ("/livez", "/startupz", "/readyz"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/readyz")).json() == {"status": "ready", "reason": None, "models": {MODEL: "ready"}}


async def test_a_model_that_failed_to_load_ends_startup_but_the_server_is_not_ready() -> None:
    engine = FakeEngine()
    engine.start_error = EngineFault("no memory left")
    async with in_process(build_stage(engine)) as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/startupz")).status_code == 200
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["reason"] == f"no model is ready: {MODEL}: no memory left"


async def test_an_engine_that_is_down_makes_the_server_unready_until_it_is_back() -> None:
    engine = FakeEngine([EngineDown("gone"), unary(text="back")])
    async with in_process(build_stage(engine)) as client:
        assert (await client.get("/readyz")).status_code == 200
        engine.check_error = EngineDown("the engine process ended")
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["models"]) == (503, {MODEL: "failed"})
        assert "the engine process ended" in response.json()["reason"]
        refused = await client.post("/v1/chat/completions", json=CHAT_BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_down")
        engine.check_error = None
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/v1/chat/completions", json=CHAT_BODY)).json() == {"text": "back"}


async def test_a_request_for_a_model_that_still_loads_says_when_to_come_back() -> None:
    async with in_process(build_stage(FakeEngine(), load=False)) as client:
        response = await client.post("/v1/chat/completions", json=CHAT_BODY)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
        assert int(response.headers["retry-after"]) > 0
        assert int(response.headers["retry-after-ms"]) > 0


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
