"""The server without HTTP, on a virtual event loop: engine pool, inference, batcher and policy are the real ones, and
the synthetic engine takes the time that an `EngineModel` says.

*First come, first served* is the same with the admission that lets everybody in at once: requests then wait in the
engine's own list, as they do in vLLM.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

from headrace_server.domain import (
    Caller,
    EngineRequest,
    EngineStats,
    ModelId,
    Operation,
    RequestId,
    StreamReply,
    Tenant,
    TenantId,
)
from headrace_server.engine.base import Engine, EngineSpec
from headrace_server.engine.catalog_entry import CatalogEntry, Prepared
from headrace_server.engine.pool import EnginePool, PoolPolicies
from headrace_server.engine.synthetic_engine import SyntheticEngine
from headrace_server.errors import RequestError
from headrace_server.observability.metrics import Metrics
from headrace_server.queueing import QueuePolicy
from headrace_server.scheduling.batching import FairBatching
from headrace_server.scheduling.options import QueueOptions
from headrace_server.scheduling.placement import LeastRecentlyUsed
from headrace_server.scheduling.restarts import Restarts
from headrace_server.serving.accounts import Accounts
from headrace_server.serving.admission import Admission, OpenAdmission
from headrace_server.serving.batcher import Batcher
from headrace_server.serving.drain import Drain
from headrace_server.serving.inference import Inference
from headrace_server.serving.refusals import Refusals
from headrace_server.tenancy.tenants import Tenants, default_queue_share
from loadtests.fair.answers import Answer, Refused
from loadtests.fair.engine_model import EngineModel
from loadtests.fair.loads import Ask, Due
from loadtests.fair.virtual_loop import now, run_virtually
from loadtests.fair.witness import WatchedPolicy, Witness

T = TypeVar("T")

MODEL = ModelId("virtual")
_WORD = " river"
_ENVELOPE_BYTES = 100
_HINT_SEED = 26
# A client that is refused and told nothing asks again after this.
_PATIENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Setup:
    """How the server is set up. `fair`: with the batcher, else first come, first served. `weights` are those of the
    tenants that its configuration names."""

    fair: bool = True
    weights: Mapping[str, float] = field(default_factory=dict)
    engine: EngineModel = field(default_factory=EngineModel)

    def tenants(self) -> Tenants:
        """On what terms tenants are served, as the runtime makes it of the configuration."""
        share = default_queue_share(len(self.weights))
        return Tenants(
            Tenant(TenantId(name), weight=weight, queue_share=share) for name, weight in self.weights.items()
        )


class VirtualServer:
    """A running server; `virtual_server` makes it. `policy` is None where it is first come, first served."""

    def __init__(self, inference: Inference, pool: EnginePool, drain: Drain, witness: Witness) -> None:
        self.witness = witness
        self.policy: WatchedPolicy | None = None
        self._inference = inference
        self._pool = pool
        self._drain = drain
        self._num_asked = 0

    @staticmethod
    def now() -> float:
        """The virtual clock."""
        return now()

    def stats(self) -> EngineStats:
        """The engine's own counters."""
        return self._pool.stats()[MODEL]

    def held(self) -> dict[str, int]:
        """What requests hold of the server at present; all 0 where none is left."""
        stats = self.stats()
        view = None if self.policy is None else self.policy.view(now())
        return {
            "leases": self._pool.status(MODEL).num_leases,
            "open requests": self._drain.num_open,
            "in the engine": stats.num_requests_running + stats.num_requests_waiting,
            "tickets": 0 if view is None else len(view.tickets),
            "slots": 0 if view is None else view.num_sequences_running,
        }

    async def ask(self, ask: Ask) -> Answer:
        """One request, to its end."""
        answer = Answer(ask, now())
        await self.serve(answer)
        return answer

    async def serve(self, answer: Answer) -> None:
        """The same into an answer that is there already, so that something of it stays where this is cancelled."""
        began = time.perf_counter()
        try:
            reply = await self._inference.submit(self._request(answer.ask))
            if isinstance(reply, StreamReply):
                await _read(reply, answer)
            answer.ended_at = now()
            if answer.first_at is None:
                answer.first_at = answer.ended_at
        except RequestError as error:
            answer.refused = Refused(error.code, error.retry_after_seconds, time.perf_counter() - began)

    def _request(self, ask: Ask) -> EngineRequest:
        self._num_asked += 1
        prompt = _WORD * ask.num_prompt_tokens
        return EngineRequest(
            operation=Operation.COMPLETION,
            model=MODEL,
            request_id=RequestId(f"{ask.tenant}-{self._num_asked}"),
            caller=Caller(TenantId(ask.tenant), key=ask.key),
            payload={"model": MODEL, "prompt": prompt, "max_tokens": ask.num_output_tokens, "stream": ask.stream},
            stream=ask.stream,
            deadline=None if ask.deadline_seconds is None else now() + ask.deadline_seconds,
            service_class=ask.service_class,
            num_bytes=len(prompt) + _ENVELOPE_BYTES,
        )

    async def open_loop(self, load: Sequence[Due], *, until_over: str = "", most_seconds: float) -> list[Answer]:
        """Send each request when it is due; return once all are over, or those of one tenant, and at the latest after
        so many seconds. What is under way then is withdrawn."""
        answers: list[Answer] = []
        pending: set[asyncio.Task[None]] = set()
        awaited: set[asyncio.Task[None]] = set()
        began = now()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(began + most_seconds):
                for due in load:
                    await asyncio.sleep(max(0.0, began + due.at_seconds - now()))
                    answer = Answer(due.ask, now())
                    task = asyncio.ensure_future(self.serve(answer))
                    answers.append(answer)
                    pending.add(task)
                    task.add_done_callback(pending.discard)
                    if due.ask.tenant == until_over or not until_over:
                        awaited.add(task)
                await asyncio.wait(awaited)
        await withdrawn(pending)
        return answers

    async def backlogged(self, asks: Iterable[tuple[Ask, int]], seconds: float) -> list[Answer]:
        """So many streams of each request, which send it again and again, for so many seconds."""
        answers: list[Answer] = []
        streams = {asyncio.ensure_future(self._stream(ask, answers)) for ask, number in asks for _ in range(number)}
        await asyncio.sleep(seconds)
        await withdrawn(streams)
        return answers

    async def _stream(self, ask: Ask, answers: list[Answer]) -> None:
        while True:
            answer = Answer(ask, now())
            answers.append(answer)
            await self.serve(answer)
            if answer.refused is not None:
                await asyncio.sleep(answer.refused.retry_after_seconds or _PATIENCE_SECONDS)


async def _read(reply: StreamReply, answer: Answer) -> None:
    try:
        async for _ in reply.events:
            if answer.first_at is None:
                answer.first_at = now()
    finally:
        await reply.events.aclose()


async def withdrawn(tasks: Iterable["asyncio.Task[None]"]) -> None:
    """Cancel these and wait until they are over."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


@asynccontextmanager
async def virtual_server(setup: Setup) -> AsyncIterator[VirtualServer]:
    """A server whose model is ready; needs a virtual loop."""
    witness, drain = Witness(), Drain()
    policies: list[WatchedPolicy] = []
    admission = _batcher(setup, policies) if setup.fair else OpenAdmission()
    pool = _pool(setup.engine, witness)
    server = VirtualServer(Inference(pool, {}, admission, drain), pool, drain, witness)
    owner = asyncio.ensure_future(pool.run())
    try:
        await pool.until_settled()
        await server.ask(Ask("warm-up", 8, 1))
        server.policy = policies[0] if policies else None
        yield server
    finally:
        await withdrawn([owner])


def _batcher(setup: Setup, policies: list[WatchedPolicy]) -> Admission:
    """Each policy that it builds is added to `policies`."""
    tenants = setup.tenants()

    def policy() -> QueuePolicy:
        policies.append(WatchedPolicy(FairBatching(QueueOptions(), tenants.tenant)))
        return policies[-1]

    return Batcher(policy, Accounts(tenants.tenant), Refusals(random.Random(_HINT_SEED)))


def _pool(model: EngineModel, witness: Witness) -> EnginePool:
    spec = EngineSpec(MODEL, "synthetic", arguments=model.arguments())

    async def prepare() -> Prepared:
        return Prepared(spec)

    def build(spec: EngineSpec) -> Engine:
        return witness.watch(SyntheticEngine(spec))

    return EnginePool(
        [CatalogEntry(MODEL, (), "synthetic:", prepare)],
        build=build,
        policies=PoolPolicies(LeastRecentlyUsed(2**30, turn_seconds=30.0), Restarts),
        observer=Metrics(),
    )


def virtually(setup: Setup, work: Callable[[VirtualServer], Awaitable[T]]) -> T:
    """Do something with a server of its own, on a clock of its own."""

    async def run() -> T:
        async with virtual_server(setup) as server:
            return await work(server)

    return run_virtually(run())


def first_come(setup: Setup) -> Setup:
    """The same engine without the batcher."""
    return replace(setup, fair=False)
