"""What an operator is told about queues."""

import asyncio
import random

import pytest

from headrace_server.domain import Tenant
from headrace_server.serving.accounts import Accounts
from headrace_server.serving.batcher import Batcher
from headrace_server.serving.refusals import Refusals
from tests.fakes.engine import FakeEngine, Hold
from tests.fakes.queue_policy import FirstCome
from tests.fakes.server import CHAT_BODY, MODEL, Stage, build_stage, in_process

pytestmark = pytest.mark.timeout(60)

URL = "/v1/chat/completions"


def queueing(engine: FakeEngine, *, limit: int = 1) -> Stage:
    """A stage whose queue lets `limit` requests in."""
    batcher = Batcher(lambda: FirstCome(limit), Accounts(Tenant), Refusals(random.Random(1)))
    return build_stage(engine, admission=batcher, queues=batcher.views)


async def test_a_model_that_nobody_has_asked_for_has_no_queue() -> None:
    async with in_process(queueing(FakeEngine())) as client:
        assert (await client.get("/admin/queue")).json() == {"models": []}


async def test_requests_are_shown_by_their_ids_the_waiting_first_and_nothing_of_their_contents() -> None:
    holds = [Hold(), Hold()]
    stage = queueing(FakeEngine(holds))
    async with in_process(stage) as client:
        asking = []
        for name in ("first", "second"):
            headers = {"x-request-id": name, "x-headrace-class": "batch", "x-headrace-deadline-ms": "50000"}
            asking.append(asyncio.create_task(client.post(URL, json=CHAT_BODY, headers=headers)))
            await holds[0].entered.wait()
        while len((await client.get("/admin/queue")).json()["models"][0]["requests"]) < 2:
            continue
        response = await client.get("/admin/queue")
        for hold in holds:
            hold.go_on.set()
        answers = await asyncio.gather(*asking)
    assert "hello" not in response.text
    (queue,) = response.json()["models"]
    assert (queue["model"], queue["slot_limit"], queue["num_sequences_running"]) == (MODEL, 1, 1)
    assert [(r["id"], r["stage"], r["position"], r["why"]) for r in queue["requests"]] == [
        ("second", "waiting", 1, "a slot"),
        ("first", "running", None, ""),
    ]
    assert {r["service_class"] for r in queue["requests"]} == {"batch"}
    assert all(49 < r["deadline_seconds"] <= 50 for r in queue["requests"])
    assert [answer.status_code for answer in answers] == [200, 200]
