"""Ten thousand clients that leave when they like, on an engine that dies now and then: nothing is held in the end.

The server's own parts, from the door to the synthetic engine, on virtual time.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import pytest

from headrace_server.domain import (
    Caller,
    EngineRequest,
    Operation,
    RequestId,
    ServiceClass,
    StreamReply,
    Tenant,
    TenantId,
)
from headrace_server.engine.base import Engine, EngineSpec
from headrace_server.engine.synthetic_engine import SyntheticEngine
from headrace_server.errors import RequestError
from headrace_server.queueing import QueuePolicy
from headrace_server.scheduling.batching import FairBatching, QueueOptions
from headrace_server.serving.accounts import Accounts
from headrace_server.serving.batcher import Batcher
from headrace_server.serving.drain import Drain
from headrace_server.serving.inference import Inference
from headrace_server.serving.refusals import Refusals
from headrace_server.tenancy.usage import Ledger
from tests.fakes.queue_policy import FirstCome
from tests.fakes.server import MODEL, catalog_entry, fake_pool, running
from tests.fakes.virtual_loop import now, until, virtually

pytestmark = pytest.mark.timeout(120)

MEAN_GAP_SECONDS = 0.008
MEAN_PATIENCE_SECONDS = 0.6
STEPS = {
    "step_ms": 10.0,
    "decode_us_per_sequence": 500.0,
    "prefill_us_per_token": 50.0,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 256,
    "kv_cache_tokens": 2000,
}
OPERATIONS = (Operation.CHAT, Operation.COMPLETION, Operation.RESPONSE, Operation.EMBEDDING, Operation.TOKENIZE)


def fair() -> QueuePolicy:
    return FairBatching(QueueOptions(max_requests=60), lambda id: Tenant(id, max_concurrency=8, queue_share=0.5))


@dataclass(frozen=True, slots=True)
class Server:
    """Everything that could be left holding something."""

    inference: Inference
    batcher: Batcher
    drain: Drain
    ledger: Ledger
    engines: list[SyntheticEngine]


@asynccontextmanager
async def serving(policy: type[FirstCome] | None) -> AsyncIterator[Server]:
    engines: list[SyntheticEngine] = []

    def build(spec: EngineSpec) -> Engine:
        engines.append(SyntheticEngine(EngineSpec(MODEL, "synthetic", arguments=STEPS)))
        return engines[-1]

    pool, drain, ledger = fake_pool([catalog_entry()], build), Drain(), Ledger()
    build_policy = fair if policy is None else lambda: policy(8)
    batcher = Batcher(build_policy, Accounts(Tenant, ledger=ledger), Refusals(random.Random(0)))
    async with running(pool):
        await pool.until_settled()
        server = Server(Inference(pool, {}, batcher, drain), batcher, drain, ledger, engines)
        yield server
        assert pool.status(MODEL).num_leases == 0


def request(chance: random.Random, number: int) -> EngineRequest:
    """Of some kind, for some tenant, in some class, perhaps with a deadline."""
    operation = chance.choices(OPERATIONS, (6, 2, 1, 1, 1))[0]
    text = "word " * chance.randint(1, 60)
    payload: dict[str, object] = {"model": MODEL}
    match operation:
        case Operation.CHAT:
            payload |= {"messages": [{"role": "user", "content": text}], "max_tokens": chance.randint(1, 30)}
        case Operation.RESPONSE | Operation.EMBEDDING:
            payload |= {"input": text}
        case _:
            payload |= {"prompt": text}
    return EngineRequest(
        operation,
        MODEL,
        RequestId(f"r{number}"),
        Caller(TenantId(f"t{chance.randint(1, 5)}")),
        payload,
        stream=operation not in (Operation.EMBEDDING, Operation.TOKENIZE) and chance.random() < 0.5,
        deadline=now() + chance.expovariate(1.0) if chance.random() < 0.2 else None,
        service_class=chance.choice(list(ServiceClass)),
        num_bytes=len(text),
    )


async def client(server: Server, asked: EngineRequest) -> str:
    """What came of it."""
    try:
        reply = await server.inference.submit(asked)
        if isinstance(reply, StreamReply):
            async with aclosing(reply.events) as events:
                async for _ in events:
                    pass
    except RequestError as error:
        return error.code
    return "served"


async def clients(server: Server, chance: random.Random, num_requests: int) -> Counter[str]:
    """All of them, each of whom leaves when it has had enough."""
    outcomes: Counter[str] = Counter()

    async def come(number: int) -> None:
        try:
            async with asyncio.timeout(chance.expovariate(1 / MEAN_PATIENCE_SECONDS)):
                outcomes[await client(server, request(chance, number))] += 1
        except TimeoutError:
            outcomes["left"] += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(num_requests):
            tasks.create_task(come(number))
            await asyncio.sleep(chance.expovariate(1 / MEAN_GAP_SECONDS))
            if number % 100 == 0:
                server.batcher.check_integrity()
    return outcomes


async def kill_engines(server: Server, every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        await server.engines[-1].close()


@pytest.mark.parametrize(("policy", "num_requests"), [(FirstCome, 2_500), (None, 10_000)], ids=["strict", "fair"])
@virtually
async def test_however_requests_end_no_slot_lease_place_or_budget_is_lost(
    policy: type[FirstCome] | None, num_requests: int
) -> None:
    async with serving(policy) as server:
        killing = asyncio.create_task(kill_engines(server, num_requests * MEAN_GAP_SECONDS / 3))
        outcomes = await clients(server, random.Random(7), num_requests)
        killing.cancel()
        await asyncio.wait({killing})
        assert outcomes.total() == num_requests
        assert outcomes["served"] > num_requests / 10
        assert outcomes["left"] > num_requests / 10
        assert outcomes["deadline_expired"] > 0
        assert (server.batcher.num_places, server.drain.num_open) == (0, 0)
        server.batcher.check_integrity()
        (view,) = server.batcher.views()
        assert (view.queue.tickets, view.queue.num_sequences_running) == ((), 0)
        assert len(server.engines) > 2
        await until(lambda: server.engines[-1].stats().num_requests_running == 0, every_seconds=0.01)
        assert server.engines[-1].stats().num_requests_waiting == 0
