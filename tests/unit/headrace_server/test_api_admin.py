"""What an operator is told about models: the listing, and the events as they happen."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from headrace_models.errors import StoreUnusable
from headrace_models.trust import Trust
from headrace_server.api.admin import ModelEvents, model_event
from headrace_server.api.sse import KEEP_ALIVE
from headrace_server.domain import CachedModel, GroupBytes, ModelId, ModelState, ModelStatus, WeightsStatus
from headrace_server.observability.events import ModelFeed
from headrace_server.tenancy.keys import KeyList
from tests.fakes.engine import FakeEngine, Hold, unary
from tests.fakes.server import ALIAS, CHAT_BODY, MODEL, Stage, build_stage, in_process, served

pytestmark = pytest.mark.timeout(60)

KEY = "a-key-of-good-length"
WEIGHTS = WeightsStatus(
    key="fake-0123456789ab",
    revision="r1",
    trust=Trust.CHUNK,
    present_bytes=40,
    total_bytes=100,
    fetched_bytes=30,
    bytes_per_second=10.0,
    eta_seconds=6.0,
    groups=(GroupBytes("embedding", 40, 50), GroupBytes("layer.0", 0, 50)),
)


def cached(key: str, reference: str, **fields: object) -> CachedModel:
    model = CachedModel(key, reference, "r0", Trust.NONE, 7, 70, 4096, 123.5, False, False, False, False)
    return replace(model, **fields)  # type: ignore[arg-type]


class TestListing:
    """GET /admin/models."""

    async def test_a_model_is_shown_with_its_state_and_how_far_its_weights_are(self) -> None:
        async with in_process(build_stage(FakeEngine(), weights=lambda: WEIGHTS)) as client:
            document = (await client.get("/admin/models")).json()
        (model,) = document["models"]
        assert (model["id"], model["aliases"], model["state"]) == (MODEL, [ALIAS], "ready")
        assert (model["source"], model["detail"], model["num_leases"]) == ("fake:", "", 0)
        assert model["weights"] == {
            "key": "fake-0123456789ab",
            "revision": "r1",
            "trust": "chunk",
            "complete": False,
            "present_bytes": 40,
            "total_bytes": 100,
            "fetched_bytes": 30,
            "bytes_per_second": 10.0,
            "eta_seconds": 6.0,
            "problem": "",
            "groups": [
                {"name": "embedding", "present_bytes": 40, "total_bytes": 50},
                {"name": "layer.0", "present_bytes": 0, "total_bytes": 50},
            ],
        }
        assert document["cached"] == []

    async def test_a_model_is_shown_with_what_it_takes_and_who_uses_it(self) -> None:
        hold = Hold()
        stage = build_stage(FakeEngine([hold], memory_bytes=700))
        async with in_process(stage) as client:
            document = (await client.get("/admin/models")).json()
            assert document["memory"] == {"budget_bytes": 10**12, "used_bytes": 700}
            (model,) = document["models"]
            assert (model["memory_bytes"], model["num_held"], model["pinned"]) == (700, 0, False)
            assert (model["eta_seconds"], model["retry_in_seconds"], model["restarting"]) == (None, None, False)
            assert model["idle_seconds"] >= 0
            asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT_BODY))
            await hold.entered.wait()
            (model,) = (await client.get("/admin/models")).json()["models"]
            assert (model["num_leases"], model["idle_seconds"]) == (1, None)
            hold.go_on.set()
            await asking

    async def test_a_model_that_is_not_in_memory_takes_none(self) -> None:
        async with in_process(build_stage(FakeEngine(memory_bytes=700), load=False)) as client:
            document = (await client.get("/admin/models")).json()
        assert document["memory"]["used_bytes"] == 0
        (model,) = document["models"]
        assert (model["state"], model["memory_bytes"], model["idle_seconds"]) == ("cold", None, None)

    async def test_requests_that_wait_for_a_model_are_counted(self) -> None:
        engine = FakeEngine([unary()])
        engine.start_gate = asyncio.Event()
        async with in_process(build_stage(engine, load=False)) as client:
            asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT_BODY))
            await engine.starting.wait()
            (model,) = (await client.get("/admin/models")).json()["models"]
            assert (model["state"], model["num_held"], model["num_leases"]) == ("loading", 1, 0)
            engine.start_gate.set()
            assert (await asking).status_code == 200

    async def test_an_engine_without_weights_has_none(self) -> None:
        async with in_process(build_stage(FakeEngine())) as client:
            (model,) = (await client.get("/admin/models")).json()["models"]
        assert model["weights"] is None

    async def test_what_else_the_store_holds_is_listed_beside_the_catalog(self) -> None:
        store = (
            cached("fake-0123456789ab", "hf://org/fake"),  # the catalog's, by its key
            cached("other-0123456789ab", "fake:"),  # the catalog's, by its reference, of another revision
            cached("old-0123456789ab", "hf://org/old", is_pinned=True),
        )
        async with in_process(build_stage(FakeEngine(), weights=lambda: WEIGHTS, look=lambda: store)) as client:
            document = (await client.get("/admin/models")).json()
        assert document["cached"] == [
            {
                "key": "old-0123456789ab",
                "reference": "hf://org/old",
                "revision": "r0",
                "trust": "none",
                "complete": False,
                "present_bytes": 7,
                "total_bytes": 70,
                "allocated_bytes": 4096,
                "last_used": 123.5,
                "pinned": True,
            }
        ]

    async def test_a_store_that_cannot_be_read_is_an_error_that_names_no_path(self) -> None:
        def look() -> tuple[CachedModel, ...]:
            raise StoreUnusable("/home/somebody/.cache cannot be locked")

        async with in_process(build_stage(FakeEngine(), look=look)) as client:
            answer = await client.get("/admin/models")
        assert answer.status_code == 500
        assert "somebody" not in answer.text

    async def test_the_loop_goes_on_while_the_store_is_read(self) -> None:
        loop = asyncio.get_running_loop()

        def look() -> tuple[CachedModel, ...]:
            return asyncio.run_coroutine_threadsafe(answer_from_the_loop(), loop).result()

        async def answer_from_the_loop() -> tuple[CachedModel, ...]:
            return (cached("old-0123456789ab", "hf://org/old"),)

        async with in_process(build_stage(FakeEngine(), look=look)) as client:
            assert len((await client.get("/admin/models")).json()["cached"]) == 1

    async def test_the_store_is_read_once_at_a_time(self) -> None:
        meeting, have_met = threading.Barrier(2), False

        def look() -> tuple[CachedModel, ...]:
            nonlocal have_met
            try:
                meeting.wait(0.02)
                have_met = True
            except threading.BrokenBarrierError:  # nobody came
                meeting.reset()
            return ()

        async with in_process(build_stage(FakeEngine(), look=look)) as client:
            answers = await asyncio.gather(*(client.get("/admin/models") for _ in range(3)))
        assert {answer.status_code for answer in answers} == {200}
        assert not have_met

    async def test_the_openai_listing_stays_as_light_as_it_was(self) -> None:
        async with in_process(build_stage(FakeEngine(), weights=lambda: WEIGHTS)) as client:
            (model,) = (await client.get("/v1/models")).json()["data"]
        assert "weights" not in model


@asynccontextmanager
async def listening(stage: Stage, client: httpx.AsyncClient) -> AsyncIterator[AsyncIterator[dict[str, object]]]:
    """The events of a server, decoded; the client leaves at the end."""
    async with client.stream("GET", "/admin/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield decoded(answer.aiter_lines())


async def decoded(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, object]]:
    async for line in lines:
        if line.startswith("event: "):
            assert line == "event: model"
            yield json.loads((await anext(lines)).removeprefix("data: "))


class TestEvents:
    """GET /admin/events."""

    async def test_the_present_comes_first_and_then_every_state(self) -> None:
        engine = FakeEngine()
        stage = build_stage(engine, load=False)
        async with served(stage) as client, listening(stage, client) as events:
            assert (await anext(events))["state"] == "cold"
            await stage.runtime.pool.load(MODEL)
            assert [(await anext(events))["state"] for _ in range(3)] == ["fetching", "loading", "ready"]

    async def test_progress_of_the_weights_comes_as_it_is_made(self) -> None:
        weights = WEIGHTS
        stage = build_stage(FakeEngine(), weights=lambda: weights)
        async with served(stage) as client, listening(stage, client) as events:
            await anext(events)
            weights = replace(WEIGHTS, is_complete=True, present_bytes=100)
            stage.runtime.feed.publish(stage.runtime.pool.status(MODEL))
            shown = (await anext(events))["weights"]
        assert isinstance(shown, dict)
        assert (shown["present_bytes"], shown["complete"]) == (100, True)

    async def test_a_pin_is_told_at_once(self) -> None:
        stage = build_stage(FakeEngine())
        async with served(stage) as client, listening(stage, client) as events:
            assert (await anext(events))["pinned"] is False
            for pinned in (True, False):
                stage.runtime.pool.pin(MODEL, pinned=pinned)
                assert (await anext(events))["pinned"] is pinned

    async def test_a_client_that_leaves_is_forgotten(self) -> None:
        stage = build_stage(FakeEngine())
        async with served(stage) as client, listening(stage, client) as events:
            await anext(events)
            assert stage.runtime.feed.num_listeners == 1
        assert stage.runtime.feed.num_listeners == 0

    async def test_the_end_of_the_server_ends_the_stream_cleanly(self) -> None:
        stage = build_stage(FakeEngine())
        async with served(stage) as client, listening(stage, client) as events:
            await anext(events)
            stage.runtime.feed.close()
            assert [event async for event in events] == []

    async def test_without_a_key_nobody_listens(self) -> None:
        stage = build_stage(FakeEngine(), authenticator=KeyList([KEY]))
        async with served(stage) as client:
            assert (await client.get("/admin/events")).status_code == 401
            assert (await client.get("/admin/models")).status_code == 401
        assert stage.runtime.feed.num_listeners == 0

    async def test_the_document_says_that_events_come_and_what_the_listing_holds(self) -> None:
        async with in_process(build_stage(FakeEngine())) as client:
            paths = (await client.get("/openapi.json")).json()["paths"]
        assert list(paths["/admin/events"]["get"]["responses"]["200"]["content"]) == ["text/event-stream"]
        assert paths["/admin/models"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert paths["/admin/models"]["get"]["security"]


async def test_silence_is_broken_by_comments_and_loses_no_event() -> None:
    feed = ModelFeed()
    events = ModelEvents(feed.listen([]), keep_alive_seconds=0.001)
    assert await anext(events) == KEEP_ALIVE
    assert await anext(events) == KEEP_ALIVE
    status = ModelStatus(ModelId("m"), ModelState.READY, "s", 0)
    feed.publish(status)
    assert await anext(events) == model_event(status)
    await events.aclose()
    assert feed.num_listeners == 0


async def test_changes_that_came_together_go_out_together() -> None:
    statuses = [ModelStatus(ModelId(name), ModelState.READY, "s", 0) for name in "ab"]
    events = ModelEvents(ModelFeed().listen(statuses), keep_alive_seconds=60)
    assert await anext(events) == b"".join(map(model_event, statuses))


def test_an_event_is_one_line_of_data_whatever_the_model_says() -> None:
    event = model_event(ModelStatus(ModelId("m"), ModelState.FAILED, "s", 0, detail="a\nb\r\nc \ud800 ü"))
    name, data, *rest = event.decode().split("\n")
    assert name == "event: model"
    assert rest == ["", ""]
    assert json.loads(data.removeprefix("data: "))["detail"].startswith("a\nb\r\nc")
