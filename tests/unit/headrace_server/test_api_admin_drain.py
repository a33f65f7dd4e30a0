"""Draining a server over HTTP: what the answer waits for, and which deadlines are none."""

import asyncio

import pytest

from headrace_server.tenancy.keys import KeyList
from tests.fakes.engine import FakeEngine, Hold, unary
from tests.fakes.server import CHAT_BODY, build_stage, in_process, served

pytestmark = pytest.mark.timeout(60)

URL = "/admin/drain"


async def test_the_answer_comes_when_the_last_request_is_over() -> None:
    hold = Hold(unary(text="hi"))
    stage = build_stage(FakeEngine([hold]))
    async with in_process(stage) as client:
        assert (await client.get(URL)).json() == {"draining": False, "num_open": 0}
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT_BODY))
        await hold.entered.wait()
        draining = asyncio.create_task(client.post(URL, json={"deadline_seconds": 60}))
        while not (status := (await client.get(URL)).json())["draining"]:
            await asyncio.wait({draining}, timeout=0.001)
        assert status == {"draining": True, "num_open": 1}
        assert not draining.done()
        refused = await client.post("/v1/chat/completions", json=CHAT_BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) > 0
        hold.go_on.set()
        assert (await asking).json() == {"text": "hi"}
        response = await draining
        assert (response.status_code, response.json()) == (200, {"cut": 0})
        assert stage.process.num_stops == 1


async def test_requests_over_the_deadline_are_cut_and_counted() -> None:
    hold = Hold()
    stage = build_stage(FakeEngine([hold]))
    async with in_process(stage) as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT_BODY))
        await hold.entered.wait()
        response = await client.post(URL, json={"deadline_seconds": 0})
        assert response.json() == {"cut": 1}
        cut = await asking
        assert (cut.status_code, cut.json()["error"]["code"]) == (503, "draining")
        assert hold.cancelled.is_set()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"deadline_seconds": null}', b'{"deadline_seconds": 1, "x": 2}'])
async def test_a_deadline_may_be_left_out(content: bytes) -> None:
    async with in_process(build_stage(FakeEngine())) as client:
        response = await client.post(URL, content=content, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()) == (200, {"cut": 0})


@pytest.mark.parametrize(
    "content",
    [
        b'{"deadline_seconds": -1}',
        b'{"deadline_seconds": "5"}',
        b'{"deadline_seconds": true}',
        b'{"deadline_seconds": 1e9}',
        b'{"deadline_seconds": NaN}',
        b'{"deadline_seconds": [1]}',
        b"[]",
        b"5",
        b"{",
    ],
)
async def test_what_is_no_deadline_is_400_and_drains_nothing(content: bytes) -> None:
    stage = build_stage(FakeEngine())
    async with in_process(stage) as client:
        response = await client.post(URL, content=content, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
        assert (await client.get(URL)).json()["draining"] is False
    assert stage.process.num_stops == 0


async def test_a_client_that_leaves_does_not_stop_the_drain() -> None:
    hold = Hold(unary())
    stage = build_stage(FakeEngine([hold]))
    async with served(stage) as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT_BODY))
        await hold.entered.wait()
        draining = asyncio.create_task(client.post(URL, json={}))
        while not stage.runtime.drain.is_draining:
            await client.get("/livez")
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
        await client.get("/livez")
        assert stage.process.num_stops == 0
        hold.go_on.set()
        assert (await asking).status_code == 200
        assert (await client.post(URL, json={})).json() == {"cut": 0}
        assert stage.process.num_stops == 2


async def test_without_a_key_or_without_json_nothing_is_drained() -> None:
    stage = build_stage(FakeEngine(), authenticator=KeyList(["a-key-of-good-length"]))
    async with in_process(stage) as client:
        assert (await client.post(URL, json={})).status_code == 401
        assert (await client.get(URL)).status_code == 401
        key = {"authorization": "Bearer a-key-of-good-length"}
        assert (await client.post(URL, headers=key)).status_code == 415
    assert not stage.runtime.drain.is_draining
