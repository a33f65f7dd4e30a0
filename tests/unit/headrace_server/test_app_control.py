"""The operator's application: the same runtime without keys, and nothing but what operators need."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from headrace_server.app import create_control_app
from headrace_server.tenancy.keys import KeyList
from tests.fakes.engine import FakeEngine
from tests.fakes.server import CHAT_BODY, MODEL, Stage, build_stage, in_process

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def controlling() -> AsyncIterator[tuple[Stage, httpx.AsyncClient]]:
    """A client without a key of the control application of a server that asks for one."""
    stage = build_stage(FakeEngine(), authenticator=KeyList(["a-key-of-good-length"]))
    app = create_control_app(stage.runtime, stage.ending)
    async with in_process(stage), in_process(Stage(app, stage.runtime)) as client:
        yield stage, client


async def test_the_operator_needs_no_key() -> None:
    async with controlling() as (stage, client):
        for path in ("/admin/models", "/admin/queue", "/admin/drain", "/livez", "/readyz", "/startupz", "/version"):
            assert (await client.get(path)).status_code == 200, path
        assert (await client.post(f"/admin/models/{MODEL}/unload", json={})).json()["state"] == "cold"
        assert stage.runtime.pool.status(MODEL).memory_bytes is None


async def test_the_end_is_the_servers() -> None:
    async with controlling() as (stage, client):
        assert (await client.post("/admin/drain", json={})).json() == {"cut": 0}
        assert stage.process.num_stops == 1
        assert stage.runtime.drain.is_draining


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/openapi.json", "/metrics"])
async def test_nothing_else_is_served(path: str) -> None:
    async with controlling() as (_stage, client):
        response = await client.post(path, json=CHAT_BODY)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_url")


async def test_refusals_have_the_envelope() -> None:
    async with controlling() as (_stage, client):
        response = await client.post("/admin/models/other/load", json={})
        assert response.json()["error"]["code"] == "model_not_found"
        assert response.headers["x-request-id"]
