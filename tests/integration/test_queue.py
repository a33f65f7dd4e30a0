"""Requests in the queue of a real server process: turns, refusals, deadlines, classes, and what is told of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.process import ServerProcess, running_server

pytestmark = pytest.mark.timeout(120)

URL = "/v1/chat/completions"
STEP_SECONDS = 0.02
KEYS = {"heavy": "key-of-the-heavy-one", "light": "key-of-the-light-one", "poor": "key-of-the-poor-one"}
CONFIG = """
server: {{header_hold_seconds: 0.2}}
auth: {{keys_file: {keys}}}
tenants:
  - {{id: heavy}}
  - {{id: light}}
  - {{id: poor, tokens_per_minute: 20}}
scheduling: {{slot_limit: 1, max_requests: 8}}
models:
  - {{id: mill, engine: synthetic, synthetic: {{step_ms: 20, max_num_seqs: 4}}}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("queue")
    keys = folder / "keys"
    keys.write_text("".join(f"{key} {tenant}\n" for tenant, key in KEYS.items()))
    config = folder / "headrace.yaml"
    config.write_text(CONFIG.format(keys=keys))
    with running_server(config, folder / "log") as process:
        yield process


@asynccontextmanager
async def calling(server: ServerProcess, tenant: str = "heavy") -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEYS[tenant]}"}
    async with httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


@asynccontextmanager
async def operating(server: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    """This machine's operator."""
    path = str(server.state_dir / f"control-{server.port}.sock")
    transport = httpx.AsyncHTTPTransport(uds=path)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def chat(num_tokens: int, *, stream: bool = False) -> dict[str, object]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": "mill", "messages": messages, "max_tokens": num_tokens, "stream": stream}


async def metrics(client: httpx.AsyncClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """After the cached body's time."""
    await asyncio.sleep(0.6)
    text = (await client.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def until_queued(server: ServerProcess, num_waiting: int) -> dict[str, list[dict[str, object]]]:
    """The queue, once so many wait."""
    async with operating(server) as operator:
        while True:
            (queue,) = (await operator.get("/admin/queue")).json()["models"]
            if sum(tenant["num_waiting"] for tenant in queue["tenants"]) >= num_waiting:
                return dict(queue)
            await asyncio.sleep(0.005)


async def until_empty(server: ServerProcess) -> None:
    async with operating(server) as operator:
        while any(queue["requests"] for queue in (await operator.get("/admin/queue")).json()["models"]):
            continue


async def test_requests_take_turns_and_those_beyond_the_bound_are_told_when_to_come_back(server: ServerProcess) -> None:
    async with calling(server) as client:
        await client.post(URL, json=chat(5))  # so that something is known
        answers = await asyncio.gather(*(client.post(URL, json=chat(10)) for _ in range(30)))
        served = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(served) + len(refused) == 30
        assert 5 <= len(served) <= 20
        waits = sorted(int(answer.headers["x-headrace-queue-ms"]) for answer in served)
        assert waits[0] < 1000 * STEP_SECONDS
        assert waits[-1] >= 3 * 10 * 1000 * STEP_SECONDS
        for answer in refused:
            assert answer.json()["error"]["code"] in ("queue_full", "tenant_queue_full")
            assert 0 < int(answer.headers["retry-after-ms"]) <= 1000 * int(answer.headers["retry-after"]) <= 120_000
        await until_empty(server)
        seen = await metrics(client)
    reasons = {dict(labels)["reason"] for name, labels in seen if name == "headrace_refusals_total"}
    assert reasons & {"queue_full", "tenant_queue_full"}
    labels = frozenset({("model", "mill"), ("class", "standard"), ("tenant_class", "heavy")})
    assert seen["headrace_queue_wait_seconds_count", labels] == len(served) + 1
    assert seen["headrace_tokens_total", labels | {("kind", "output")}] == 10 * len(served) + 5
    assert seen["headrace_requests_waiting", frozenset({("model", "mill"), ("class", "standard")})] == 0


async def test_a_stream_in_the_queue_is_told_its_position_and_the_operator_sees_who_waits(
    server: ServerProcess,
) -> None:
    async with calling(server) as heavy, calling(server, "light") as light:
        first = asyncio.create_task(heavy.post(URL, json=chat(50), headers={"x-request-id": "the-first"}))
        await asyncio.sleep(4 * STEP_SECONDS)
        headers = {"x-request-id": "the-second"}
        async with light.stream("POST", URL, json=chat(3, stream=True), headers=headers) as response:
            assert response.status_code == 200
            assert int(response.headers["x-headrace-queue-ms"]) >= 150
            queue = await until_queued(server, 1)
            text = "".join([piece async for piece in response.aiter_text()])
        assert ": queued, position 1" in text
        assert text.endswith("data: [DONE]\n\n")
        assert (await first).status_code == 200
    requests = {request["id"]: request for request in queue["requests"]}
    assert (requests["the-first"]["stage"], requests["the-second"]["stage"]) == ("running", "waiting")
    assert (requests["the-second"]["tenant"], requests["the-second"]["position"]) == ("light", 1)
    assert requests["the-second"]["why"]
    assert "hello" not in json.dumps(queue)


async def test_what_expires_in_the_queue_is_not_computed(server: ServerProcess) -> None:
    async with calling(server) as client:
        await until_empty(server)
        model = frozenset({("model", "mill")})
        before = (await metrics(client))["headrace_engine_prompt_tokens_total", model]
        first = asyncio.create_task(client.post(URL, json=chat(40)))
        await asyncio.sleep(4 * STEP_SECONDS)
        late = await client.post(URL, json=chat(5), headers={"x-headrace-deadline-ms": "200"})
        assert late.status_code in (429, 504)  # refused on arrival, where the wait was known
        assert late.json()["error"]["code"] in ("deadline_unmeetable", "deadline_expired")
        assert late.headers["x-should-retry"] == "false"
        num_prompt_tokens = (await first).json()["usage"]["prompt_tokens"]
        assert (await metrics(client))["headrace_engine_prompt_tokens_total", model] == before + num_prompt_tokens


@pytest.mark.parametrize("stream", [True, False])
async def test_what_expires_under_way_ends_in_the_error(server: ServerProcess, stream: bool) -> None:
    async with calling(server) as client:
        await until_empty(server)
        headers = {"x-headrace-deadline-ms": "300"}
        answer = await client.post(URL, json=chat(100, stream=stream), headers=headers)
        await until_empty(server)
    if not stream:
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_expired")
        assert answer.headers["x-should-retry"] == "false"
        return
    *events, last = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_expired"


async def test_batch_work_gives_way_at_once_and_is_finished_all_the_same(server: ServerProcess) -> None:
    async with calling(server) as heavy, calling(server, "light") as light:
        await until_empty(server)
        batch = asyncio.create_task(heavy.post(URL, json=chat(60), headers={"x-headrace-class": "batch"}))
        await asyncio.sleep(10 * STEP_SECONDS)
        urgent = await light.post(URL, json={**chat(5), "service_tier": "priority"})
        assert not batch.done()
        assert urgent.elapsed.total_seconds() < 30 * STEP_SECONDS
        answer = await batch
        assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 60)
        seen = await metrics(heavy)
    labels = frozenset({("model", "mill"), ("class", "batch"), ("tenant_class", "heavy")})
    assert seen["headrace_preemptions_total", labels] == 1


async def test_a_tenant_that_has_used_up_its_tokens_is_told_when_there_are_more(server: ServerProcess) -> None:
    async with calling(server, "poor") as poor, calling(server, "light") as light:
        assert (await poor.post(URL, json=chat(30))).status_code == 200
        refused = await poor.post(URL, json=chat(1))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
        assert refused.headers["x-ratelimit-limit-tokens"] == "20"
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
        assert refused.headers["x-ratelimit-reset-tokens"].endswith("s")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await light.post(URL, json=chat(1))).status_code == 200


async def test_a_client_that_leaves_makes_room_for_the_next(server: ServerProcess) -> None:
    async with calling(server) as client:
        await until_empty(server)
        leaving = [asyncio.create_task(client.post(URL, json=chat(200))) for _ in range(3)]
        await until_queued(server, 2)
        for task in leaving:
            task.cancel()
        answer = await client.post(URL, json=chat(1))
        assert answer.status_code == 200
        assert answer.elapsed.total_seconds() < 50 * STEP_SECONDS
        await asyncio.gather(*leaving, return_exceptions=True)
        await until_empty(server)
