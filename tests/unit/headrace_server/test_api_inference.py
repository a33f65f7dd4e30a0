"""What goes with a request beside its body: the deadline that a client sets, the state in which it found its model."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest

from headrace_server.api.request_class import MAX_DEADLINE_MS
from headrace_server.domain import ServiceClass
from headrace_server.errors import Contended, EngineFault
from headrace_server.queueing import Outlook
from tests.fakes.admission import FakeAdmission
from tests.fakes.engine import DONE, FakeEngine, FakeStream, frame, unary
from tests.fakes.server import CHAT_BODY, STREAM_BODY, build_stage, in_process, served

pytestmark = pytest.mark.timeout(60)

URL = "/v1/chat/completions"
DEADLINE = "x-headrace-deadline-ms"
STATE = "x-headrace-model-state"
QUEUE = "x-headrace-queue-ms"


@pytest.mark.parametrize("milliseconds", [1, 2500, MAX_DEADLINE_MS])
async def test_a_deadline_is_counted_from_the_requests_arrival(milliseconds: int) -> None:
    engine = FakeEngine([unary()])
    loop = asyncio.get_running_loop()
    async with in_process(build_stage(engine)) as client:
        earliest = loop.time() + milliseconds / 1000
        assert (await client.post(URL, json=CHAT_BODY, headers={DEADLINE: str(milliseconds)})).status_code == 200
        latest = loop.time() + milliseconds / 1000
    assert engine.requests[0].deadline is not None
    assert earliest <= engine.requests[0].deadline <= latest


async def test_a_body_that_takes_its_time_does_not_move_the_deadline() -> None:
    engine = FakeEngine([unary()])
    loop = asyncio.get_running_loop()
    may_send = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b" "
        await may_send.wait()
        yield json.dumps(CHAT_BODY).encode()

    headers = {DEADLINE: "1000", "content-type": "application/json"}
    async with served(build_stage(engine)) as client:
        asking = asyncio.create_task(client.post(URL, content=body(), headers=headers))
        await client.get("/livez")
        await client.get("/livez")
        arrived_before = loop.time()
        await asyncio.sleep(0.03)
        may_send.set()
        assert (await asking).status_code == 200
    assert engine.requests[0].deadline is not None
    assert engine.requests[0].deadline < arrived_before + 1.03


async def test_without_the_header_there_is_no_deadline() -> None:
    engine = FakeEngine([unary()])
    async with in_process(build_stage(engine)) as client:
        await client.post(URL, json=CHAT_BODY)
    assert engine.requests[0].deadline is None


@pytest.mark.parametrize(
    "value", ["", "0", "-5", "1.5", "1e3", "soon", "0x10", "1_000", "٣", "86400001", "9" * 5000, " ", "5 5"]
)
async def test_what_is_no_deadline_is_a_400_that_names_the_header(value: str) -> None:
    engine = FakeEngine()
    async with in_process(build_stage(engine)) as client:
        for body in (CHAT_BODY, STREAM_BODY):
            response = await client.post(URL, json=body, headers=[(DEADLINE.encode(), value.encode())])
            assert response.status_code == 400
            assert response.json()["error"]["param"] == DEADLINE
    assert engine.requests == []


async def test_two_deadlines_are_none() -> None:
    async with in_process(build_stage(FakeEngine())) as client:
        response = await client.post(URL, json=CHAT_BODY, headers=[(DEADLINE, "1000"), (DEADLINE, "1000")])
        assert (response.status_code, response.json()["error"]["param"]) == (400, DEADLINE)


async def test_an_answer_says_how_the_request_found_its_model() -> None:
    engine = FakeEngine([unary(), unary(), EngineFault("no"), FakeStream(DONE)])
    async with in_process(build_stage(engine, load=False)) as client:
        for expected in ("cold", "ready"):
            response = await client.post(URL, json=CHAT_BODY)
            assert (response.status_code, response.headers[STATE]) == (200, expected)
        response = await client.post(URL, json=CHAT_BODY)
        assert (response.status_code, response.headers[STATE]) == (500, "ready")


@pytest.mark.parametrize("fails", [False, True])
async def test_so_does_a_stream_and_one_that_is_refused(fails: bool) -> None:
    stream = FakeStream()
    if fails:
        stream.fail(EngineFault("no"))
    stream.end()
    async with in_process(build_stage(FakeEngine([stream]), load=False)) as client:
        response = await client.post(URL, json=STREAM_BODY)
        assert (response.status_code, response.headers[STATE]) == (500 if fails else 200, "cold")


async def test_an_answer_about_no_model_names_no_state() -> None:
    async with in_process(build_stage(FakeEngine())) as client:
        for response in (
            await client.get("/v1/models"),
            await client.post(URL, json={**CHAT_BODY, "model": "other"}),
            await client.post(URL, json={}),
        ):
            assert STATE not in response.headers


async def test_a_held_stream_is_told_what_it_waits_for() -> None:
    engine = FakeEngine()
    engine.start_gate = asyncio.Event()
    stage = build_stage(engine, load=False, hold_seconds=0.005)
    async with served(stage) as client, client.stream("POST", URL, json=STREAM_BODY) as response:
        assert (response.status_code, response.headers[STATE]) == (200, "cold")
        pieces = response.aiter_raw()
        assert (await anext(pieces)).startswith(b": loading fake-model\n\n")
        engine.start_error = EngineFault("no")
        engine.start_gate.set()
        rest = b"".join([piece async for piece in pieces])
        assert b"data: " in rest
        assert b"DONE" not in rest


async def test_the_listing_says_when_a_model_that_failed_is_tried_again() -> None:
    engine = FakeEngine()
    engine.start_error = EngineFault("no memory left")
    async with in_process(build_stage(engine)) as client:
        (model,) = (await client.get("/v1/models")).json()["data"]
        assert (model["state"], model["detail"], model["eta_seconds"]) == ("failed", "no memory left", None)
        assert model["retry_in_seconds"] > 0


async def test_the_listing_says_when_a_model_on_its_way_may_serve() -> None:
    engine = FakeEngine([unary()])
    async with in_process(build_stage(engine)) as client:
        (model,) = (await client.get("/v1/models")).json()["data"]
        assert (model["eta_seconds"], model["retry_in_seconds"]) == (None, None)
        await client.post("/admin/models/fake-model/unload", json={})
        engine.start_gate = asyncio.Event()
        engine.starting.clear()
        asking = asyncio.create_task(client.post(URL, json=CHAT_BODY))
        await engine.starting.wait()
        (model,) = (await client.get("/v1/models")).json()["data"]
        assert model["state"] == "loading"
        assert model["eta_seconds"] >= 0
        engine.start_gate.set()
        assert (await asking).status_code == 200


# ------------------------------------------------------------------------------------------- class, size, queue


async def test_a_request_goes_on_with_its_class_its_tenant_and_its_size() -> None:
    engine = FakeEngine([unary()])
    content = json.dumps(CHAT_BODY)
    async with in_process(build_stage(engine)) as client:
        headers = {"x-headrace-class": "batch", "content-type": "application/json"}
        assert (await client.post(URL, content=content, headers=headers)).status_code == 200
    (seen,) = engine.requests
    assert (seen.service_class, seen.caller.tenant, seen.num_bytes) == (ServiceClass.BATCH, "default", len(content))


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_says_how_long_the_request_waited_for_its_turn(stream: bool) -> None:
    admission, events = FakeAdmission(is_open=False), FakeStream(DONE)
    events.end()
    engine = FakeEngine([events if stream else unary()])
    async with in_process(build_stage(engine, admission=admission)) as client:
        asking = asyncio.create_task(client.post(URL, json=STREAM_BODY if stream else CHAT_BODY))
        await admission.entered.wait()
        admission.places[0].waited_seconds = 1.2344
        admission.let_in()
        response = await asking
    assert (response.status_code, response.headers[QUEUE]) == (200, "1234")


async def test_a_request_that_never_asked_for_its_turn_does_not_say_how_long_it_waited() -> None:
    admission = FakeAdmission()
    admission.door_error = Contended("too many")
    async with in_process(build_stage(FakeEngine(), admission=admission)) as client:
        response = await client.post(URL, json=CHAT_BODY)
    assert (response.status_code, response.headers[STATE]) == (429, "ready")
    assert QUEUE not in response.headers


async def test_a_stream_that_waits_for_its_turn_is_told_its_place_and_how_long_it_may_take() -> None:
    admission, engine = FakeAdmission(is_open=False), FakeEngine([FakeStream(frame("a"))])
    stage = build_stage(engine, admission=admission, hold_seconds=0.005)
    async with served(stage) as client:
        asking = asyncio.create_task(client.send(client.build_request("POST", URL, json=STREAM_BODY), stream=True))
        await admission.entered.wait()
        (place,) = admission.places
        place.expected, place.waited_seconds = Outlook(3, 2.4), 0.5
        response = await asking
        assert (response.status_code, response.headers[QUEUE]) == (200, "500")
        pieces = response.aiter_raw()
        assert (await anext(pieces)).startswith(b": queued, position 3, about 2 s\n\n")
        place.expected = Outlook(1, None)
        async for piece in pieces:
            if b": queued, position 1\n\n" in piece:
                break
        admission.let_in()
        async for piece in pieces:
            if frame("a") in piece:
                break
        await response.aclose()


async def test_the_access_log_names_tenant_and_class_and_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    admission = FakeAdmission(is_open=False)
    with caplog.at_level(logging.INFO, "headrace_server.access"):
        async with in_process(build_stage(FakeEngine([unary()]), admission=admission)) as client:
            asking = asyncio.create_task(client.post(URL, json={**CHAT_BODY, "service_tier": "priority"}))
            await admission.entered.wait()
            admission.places[0].waited_seconds = 0.25
            admission.let_in()
            await asking
            admission.door_error = Contended("too many")
            await client.post(URL, json=CHAT_BODY)
            await client.get("/livez")
    fields = [
        [getattr(record, name, None) for name in ("status", "model", "tenant", "class", "queue_ms")]
        for record in caplog.records
        if record.name == "headrace_server.access"
    ]
    assert fields == [
        [200, "fake-model", "default", "interactive", 250],
        [429, "fake-model", "default", "standard", None],
        [200, None, None, None, None],
    ]
    assert "hello" not in caplog.text
