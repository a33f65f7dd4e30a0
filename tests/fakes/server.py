"""Applications on fake engines, and a real uvicorn in the test's own loop.

`in_process` is for JSON only: its transport buffers whole bodies. Streams, time to first byte and clients that leave
need `serve_app`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace_server.api.ending import Ending
from headrace_server.app import HttpOptions, create_app
from headrace_server.domain import CachedModel, ModelId, ModelStatus, WeightsStatus
from headrace_server.engine.base import Engine, EngineSpec
from headrace_server.engine.catalog_entry import CatalogEntry, Prepared
from headrace_server.engine.model_storage import ModelStorage
from headrace_server.engine.pool import EnginePool, PoolLimits, PoolPolicies
from headrace_server.observability.events import ModelFeed
from headrace_server.observability.metrics import Metrics
from headrace_server.runtime import Runtime
from headrace_server.scheduling.placement import LeastRecentlyUsed
from headrace_server.scheduling.restarts import Restarts
from headrace_server.serving.admission import Admission, OpenAdmission
from headrace_server.serving.drain import Drain
from headrace_server.serving.inference import Inference
from headrace_server.serving.model_queue import ModelQueueView
from headrace_server.serving.policy import ModelPolicy
from headrace_server.tenancy.keys import Authenticator, OpenDoor
from headrace_server.tenancy.terms import Terms
from headrace_server.tenancy.usage import Ledger
from tests.fakes.uvicorn_server import EventServer

MODEL = ModelId("fake-model")
ALIAS = ModelId("fake")
CHAT_BODY: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
TURN_SECONDS = 30.0  # how long a model in use keeps memory that others wait for
STREAM_BODY: dict[str, object] = {**CHAT_BODY, "stream": True}


def catalog_entry(
    model: str = MODEL,
    *,
    aliases: tuple[str, ...] = (),
    weights: Callable[[], WeightsStatus | None] = lambda: None,
    at_startup: bool = True,
    memory_bytes: int = 0,
) -> CatalogEntry:
    """A model that needs no preparation."""
    spec = EngineSpec(ModelId(model), "fake", aliases=tuple(map(ModelId, aliases)))

    async def prepare() -> Prepared:
        return Prepared(spec, memory_bytes)

    return CatalogEntry(spec.model, spec.aliases, "fake:", prepare, weights, at_startup=at_startup)


def fake_pool(
    entries: Iterable[CatalogEntry],
    build: Callable[[EngineSpec], Engine],
    *,
    budget_bytes: int = 10**12,
    limits: PoolLimits | None = None,
    metrics: Metrics | None = None,
    on_change: Callable[[ModelStatus], None] = lambda _status: None,
) -> EnginePool:
    """A pool with the server's own policies, whose engines are the test's."""
    return EnginePool(
        entries,
        build=build,
        policies=PoolPolicies(LeastRecentlyUsed(budget_bytes, turn_seconds=TURN_SECONDS), Restarts),
        observer=metrics or Metrics(),
        limits=limits,
        memory_budget_bytes=budget_bytes,
        on_change=on_change,
    )


@asynccontextmanager
async def running(pool: EnginePool) -> AsyncIterator[EnginePool]:
    """The pool's owner task; afterwards every engine has been closed."""
    try:
        async with asyncio.TaskGroup() as tasks:
            owner = tasks.create_task(pool.run())
            try:
                yield pool
            finally:
                owner.cancel()
    except BaseExceptionGroup as failures:
        if len(failures.exceptions) > 1:
            raise
        raise failures.exceptions[0] from None


class Process:
    """Counts how often the server's process was told to stop."""

    def __init__(self) -> None:
        self.num_stops = 0

    def stop(self) -> None:
        """One more time."""
        self.num_stops += 1


@dataclass(frozen=True, slots=True)
class Stage:
    """An application on one fake engine (`MODEL`, alias `ALIAS`), and the parts that tests look at."""

    app: FastAPI
    runtime: Runtime
    ending: Ending = field(default_factory=Ending)
    process: Process = field(default_factory=Process)

    @property
    def num_leases(self) -> int:
        """Leases that are held now."""
        return self.runtime.pool.status(MODEL).num_leases


def build_stage(
    engine: Engine,
    *,
    admission: Admission | None = None,
    authenticator: Authenticator | None = None,
    policy: ModelPolicy | None = None,
    options: HttpOptions | None = None,
    hold_seconds: float = 60.0,
    load: bool = True,
    weights: Callable[[], WeightsStatus | None] = lambda: None,
    look: Callable[[], tuple[CachedModel, ...]] = lambda: (),
    terms: Terms | None = None,
    ledger: Ledger | None = None,
    queues: Callable[[], tuple[ModelQueueView, ...]] = tuple,
) -> Stage:
    """An application on `engine`; with `load` false the model is loaded on demand. `weights` are the model's, `look` is
    what the store holds."""
    feed, metrics, drain = ModelFeed(), Metrics(), Drain()
    entry = catalog_entry(aliases=(ALIAS,), weights=weights, at_startup=load)
    pool = fake_pool([entry], lambda _spec: engine, metrics=metrics, on_change=feed.publish)
    metrics.watch(pool.stats, pool.statuses)
    inference = Inference(pool, {MODEL: policy or ModelPolicy()}, admission or OpenAdmission(), drain)
    runtime = Runtime(
        pool,
        inference,
        authenticator or OpenDoor(),
        metrics,
        hold_seconds,
        feed,
        ModelStorage(look),
        drain,
        terms or Terms(),
        ledger or Ledger(),
        queues,
    )

    @asynccontextmanager
    async def open_runtime() -> AsyncIterator[Runtime]:
        async with running(pool):
            await pool.until_settled()
            yield runtime

    process = Process()
    ending = Ending(stop=process.stop)
    return Stage(create_app(open_runtime, options, ending), runtime, ending, process)


@asynccontextmanager
async def in_process(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    """A client for JSON answers, without sockets; opens and closes the runtime as a server would."""
    async with (
        stage.app.router.lifespan_context(stage.app) as state,
        plain_client(_with_state(stage.app, dict(state or {}))) as client,
    ):
        yield client


def plain_client(app: ASGIApp) -> httpx.AsyncClient:
    """A client for JSON answers of an application that needs no lifespan."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://headrace.test")


def _with_state(app: ASGIApp, state: dict[str, object]) -> ASGIApp:
    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    return with_state


@asynccontextmanager
async def serve_app(app: ASGIApp) -> AsyncIterator[str]:
    """Run an application in uvicorn on a free port of this machine, and yield its base URL."""
    server = EventServer(
        uvicorn.Config(app, host="127.0.0.1", port=0, http="httptools", lifespan="on", log_config=None)
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(server.serve())
        await asyncio.wait({running, tasks.create_task(server.has_started.wait())}, return_when="FIRST_COMPLETED")
        try:
            host, port = server.servers[0].sockets[0].getsockname()[:2]
            yield f"http://{host}:{port}"
        finally:
            server.may_stop.set()


@asynccontextmanager
async def served(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a stage that runs in a real server. Leases are final once the context has been left."""
    async with serve_app(stage.app) as base_url, httpx.AsyncClient(base_url=base_url, trust_env=False) as client:
        yield client
