"""What an operator does with models over HTTP: load, unload, pin and unpin, and every way in which that is refused."""

import asyncio

import httpx
import pytest

from headrace_server.errors import EngineFault
from headrace_server.tenancy.keys import KeyList
from tests.fakes.engine import FakeEngine, Hold, unary
from tests.fakes.server import ALIAS, CHAT_BODY, MODEL, build_stage, in_process, served

pytestmark = pytest.mark.timeout(60)

ACTIONS = ("load", "unload", "pin", "unpin")


async def act(client: httpx.AsyncClient, action: str, model: str = MODEL) -> httpx.Response:
    return await client.post(f"/admin/models/{model}/{action}", json={})


def error_of(response: httpx.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


async def test_a_model_is_loaded_and_unloaded_and_shown_as_it_is_then() -> None:
    engine = FakeEngine(memory_bytes=70)
    async with in_process(build_stage(engine, load=False)) as client:
        loaded = await act(client, "load")
        assert (loaded.status_code, loaded.json()["state"], loaded.json()["memory_bytes"]) == (200, "ready", 70)
        assert loaded.json() == {
            **(await client.get("/admin/models")).json()["models"][0],
            "idle_seconds": loaded.json()["idle_seconds"],
        }
        unloaded = await act(client, "unload")
        assert (unloaded.status_code, unloaded.json()["state"], unloaded.json()["memory_bytes"]) == (200, "cold", None)
        assert (engine.num_starts, engine.num_closes) == (1, 1)


async def test_a_model_is_found_by_its_alias_too() -> None:
    async with in_process(build_stage(FakeEngine(), load=False)) as client:
        assert (await act(client, "load", ALIAS)).json()["id"] == MODEL


async def test_unloading_waits_for_the_requests_that_run() -> None:
    hold = Hold(unary(text="hi"))
    engine = FakeEngine([hold])
    async with in_process(build_stage(engine)) as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT_BODY))
        await hold.entered.wait()
        unloading = asyncio.create_task(act(client, "unload"))
        while (await client.get("/admin/models")).json()["models"][0]["state"] != "draining":
            await asyncio.wait({unloading}, timeout=0.001)
        assert not unloading.done()
        assert engine.num_closes == 0
        hold.go_on.set()
        assert (await asking).json() == {"text": "hi"}
        assert (await unloading).json()["state"] == "cold"


async def test_a_load_that_fails_says_why_and_when_it_is_tried_again() -> None:
    engine = FakeEngine()
    engine.start_error = EngineFault("no kernel for this card")
    async with in_process(build_stage(engine, load=False)) as client:
        response = await act(client, "load")
        assert error_of(response) == (503, "engine_down")
        assert (
            response.json()["error"]["message"] == f"the model '{MODEL}' could not be loaded: no kernel for this card"
        )
        assert int(response.headers["retry-after"]) > 0


async def test_pinning_changes_what_is_shown_and_nothing_else() -> None:
    engine = FakeEngine()
    async with in_process(build_stage(engine, load=False)) as client:
        for action, pinned in (("pin", True), ("pin", True), ("unpin", False)):
            response = await act(client, action)
            assert (response.status_code, response.json()["pinned"]) == (200, pinned)
            assert (await client.get("/admin/models")).json()["models"][0]["pinned"] is pinned
        assert response.json()["state"] == "cold"


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", ["other", "org/other", "x" * 3000, "%F0%9F%98%80", "a/load/b"])
async def test_an_unknown_model_is_404(action: str, name: str) -> None:
    async with in_process(build_stage(FakeEngine())) as client:
        assert error_of(await act(client, action, name)) == (404, "model_not_found")


@pytest.mark.parametrize("action", ACTIONS)
async def test_a_page_of_another_origin_cannot_do_it_because_json_is_asked_for(action: str) -> None:
    engine = FakeEngine()
    async with in_process(build_stage(engine, load=False)) as client:
        response = await client.post(f"/admin/models/{MODEL}/{action}", headers={"content-type": "text/plain"})
        assert error_of(response) == (415, "unsupported_media_type")
        assert (await client.get("/admin/models")).json()["models"][0]["pinned"] is False
    assert engine.num_starts == 0


@pytest.mark.parametrize("action", ACTIONS)
async def test_without_a_key_nothing_is_done(action: str) -> None:
    engine = FakeEngine()
    stage = build_stage(engine, load=False, authenticator=KeyList(["a-key-of-good-length"]))
    async with in_process(stage) as client:
        assert error_of(await act(client, action)) == (401, "invalid_api_key")
        assert not stage.runtime.pool.status(MODEL).is_pinned
    assert engine.num_starts == 0


async def test_a_client_that_leaves_leaves_the_load_going() -> None:
    engine = FakeEngine()
    engine.start_gate = asyncio.Event()
    stage = build_stage(engine, load=False)
    async with served(stage) as client:
        asking = asyncio.create_task(act(client, "load"))
        await engine.starting.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        while stage.runtime.pool.status(MODEL).num_held:
            await client.get("/livez")
        engine.start_gate.set()
        assert (await act(client, "load")).json()["state"] == "ready"
    assert engine.num_starts == 1


async def test_the_end_of_the_server_ends_who_waits_for_a_load() -> None:
    engine = FakeEngine()
    engine.start_gate = asyncio.Event()
    stage = build_stage(engine, load=False)
    async with in_process(stage) as client:
        asking = asyncio.create_task(act(client, "load"))
        await engine.starting.wait()
        stage.ending.end()
        response = await asking
        assert error_of(response) == (503, "draining")
        assert int(response.headers["retry-after"]) > 0
