"""The composition root: settings in, a running server's parts out. Owns the task group of the supply and the pool.

Nothing below this module reads settings, and nothing above it builds engines.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from headrace_server.access import Access, build_access
from headrace_server.catalog import (
    PlannedModel,
    Supplies,
    cache_directory,
    catalog_entries,
    plan_models,
    supplies_of,
)
from headrace_server.domain import ModelId, ModelStatus, ServiceClass
from headrace_server.engine.base import EngineSpec
from headrace_server.engine.machine_memory import MachineMemory, allowed_cpus, machine_memory
from headrace_server.engine.model_storage import ModelStorage, cached_models
from headrace_server.engine.pool import EnginePool, PoolLimits, PoolPolicies
from headrace_server.engine.registry import build_engine, preload_engine
from headrace_server.observability.events import ModelFeed
from headrace_server.observability.metrics import Metrics
from headrace_server.observability.request_metrics import RequestMetrics
from headrace_server.scheduling.batching import FairBatching, QueueOptions
from headrace_server.scheduling.cpus import as_text, least_used, parsed, share_of
from headrace_server.scheduling.placement import LeastRecentlyUsed
from headrace_server.scheduling.restarts import Restarts
from headrace_server.serving.accounts import Accounts
from headrace_server.serving.batcher import Batcher
from headrace_server.serving.drain import Drain
from headrace_server.serving.inference import Inference
from headrace_server.serving.model_queue import ModelQueueView
from headrace_server.serving.policy import ModelPolicy
from headrace_server.serving.refusals import Refusals
from headrace_server.settings.scheduling import SchedulingSettings
from headrace_server.settings.schema import EngineKind, EngineSettings, Settings
from headrace_server.tenancy.keys import Authenticator
from headrace_server.tenancy.terms import Terms
from headrace_server.tenancy.usage import Ledger

logger = logging.getLogger(__name__)

CpuShares: TypeAlias = tuple[tuple[int, ...], ...]

# Of the memory there is; the rest is for this process, the system, and what estimates miss.
_BUDGET_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Runtime:
    """What request handlers work with."""

    pool: EnginePool
    inference: Inference
    authenticator: Authenticator
    metrics: Metrics
    header_hold_seconds: float
    feed: ModelFeed
    storage: ModelStorage
    drain: Drain
    terms: Terms = field(default_factory=Terms)
    ledger: Ledger = field(default_factory=Ledger)
    queues: Callable[[], tuple[ModelQueueView, ...]] = tuple


@dataclass(frozen=True, slots=True)
class Progress:
    """Who wants to know how the start goes. Called on the event loop."""

    on_change: Callable[[ModelStatus], None] = lambda _status: None
    on_settled: Callable[[tuple[ModelStatus, ...]], None] = lambda _statuses: None


@dataclass(frozen=True, slots=True)
class Reporting:
    """Where the server tells of itself; made before the runtime and closed after it."""

    metrics: Metrics = field(default_factory=Metrics)
    feed: ModelFeed = field(default_factory=ModelFeed)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the settings come to, checked as far as that is quick; nothing has been started."""

    models: tuple[PlannedModel, ...]
    policies: Mapping[ModelId, ModelPolicy]
    access: Access
    header_hold_seconds: float
    cache_dir: Path
    engine: EngineSettings
    memory: MachineMemory
    cpu_shares: CpuShares
    queue: QueueOptions

    @property
    def memory_budget_bytes(self) -> int:
        """What all engines together may take."""
        return self.engine.memory_budget_bytes or round(self.memory.total_bytes * _BUDGET_SHARE)


def plan_runtime(settings: Settings) -> Plan:
    """Settings → plan.

    Raises:
        UsageError: settings that cannot work (keys file, model reference, a directory that is refused).
    """
    policies = {
        ModelId(model.id): ModelPolicy(model.client_chat_template, model.remote_media) for model in settings.models
    }
    models, memory = plan_models(settings), machine_memory()
    return Plan(
        models,
        policies,
        build_access(settings),
        settings.server.header_hold_seconds,
        cache_directory(settings.cache),
        settings.engine,
        memory,
        () if memory.is_device else _cpu_shares(models),
        queue_options(settings.scheduling),
    )


def queue_options(scheduling: SchedulingSettings) -> QueueOptions:
    """The queue's options, from the settings of the same names."""
    classes = scheduling.classes
    return QueueOptions(
        max_requests=scheduling.max_requests,
        max_tokens=scheduling.max_tokens,
        max_bytes=scheduling.max_bytes,
        slot_limit=scheduling.slot_limit,
        interactive_reserve=scheduling.interactive_reserve,
        target_step_seconds=scheduling.target_step_seconds,
        max_wait_seconds={
            ServiceClass.INTERACTIVE: classes.interactive.max_wait_seconds,
            ServiceClass.STANDARD: classes.standard.max_wait_seconds,
            ServiceClass.BATCH: classes.batch.max_wait_seconds,
        },
    )


def _cpu_shares(models: Sequence[PlannedModel]) -> CpuShares:
    """A share of the processors for each model that computes here; none where one model may have them all."""
    num_models = sum(model.settings.engine is EngineKind.VLLM for model in models)
    cpus = allowed_cpus()
    if num_models < 2 or len(cpus) < 2:
        return ()
    # One is left to this process and to the engines' schedulers, where there are enough.
    return share_of(cpus[:-1] if len(cpus) > num_models else cpus, num_models)


@asynccontextmanager
async def open_runtime(plan: Plan, reporting: Reporting, progress: Progress) -> AsyncIterator[Runtime]:
    """Build everything, bring the models up in the background, and take it all down at the end."""
    with TemporaryDirectory(prefix="headrace-", ignore_cleanup_errors=True) as scratch:
        supplies = supplies_of(plan.models, on_change=lambda model: pool.weights_changed(model))
        feed = reporting.feed
        pool = _open_pool(plan, supplies, Path(scratch), reporting, lambda status: _tell(status, feed, progress))
        reporting.metrics.watch(pool.stats, pool.statuses)
        drain, batcher = Drain(), _open_batcher(plan, reporting.metrics)
        runtime = Runtime(
            pool,
            Inference(pool, plan.policies, batcher, drain),
            plan.access.authenticator,
            reporting.metrics,
            plan.header_hold_seconds,
            feed,
            ModelStorage(partial(cached_models, plan.cache_dir)),
            drain,
            plan.access.terms,
            plan.access.ledger,
            batcher.views,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                # In this order: the first fetch is on its way before any engine is imported.
                work = [
                    tasks.create_task(supplies.far.run()),
                    tasks.create_task(supplies.near.run()),
                    tasks.create_task(pool.run()),
                    tasks.create_task(_preload(plan, Path(scratch))),
                    tasks.create_task(_settle(pool, progress)),
                    tasks.create_task(plan.access.ledger.run()),
                ]
                yield runtime
                feed.close()
                for task in work:
                    task.cancel()
        finally:
            feed.close()
            for supply in (supplies.near, supplies.far):
                supply.close()  # not before the engines, which read what is leased


def _open_batcher(plan: Plan, metrics: Metrics) -> Batcher:
    """The queues, which tell the metrics of their requests."""
    access, tenants = plan.access, plan.access.terms.tenants
    requests = RequestMetrics(tenant.id for tenant in tenants.configured)
    accounts = Accounts(tenants.tenant, quotas=access.quotas, ledger=access.ledger, metrics=requests)
    batcher = Batcher(partial(FairBatching, plan.queue, tenants.tenant), accounts, Refusals(random.Random()))
    requests.queued = batcher.counts
    metrics.watch_requests(requests)
    return batcher


def _open_pool(
    plan: Plan, supplies: Supplies, scratch: Path, reporting: Reporting, on_change: Callable[[ModelStatus], None]
) -> EnginePool:
    policies = PoolPolicies(
        LeastRecentlyUsed(plan.memory_budget_bytes, turn_seconds=plan.engine.turn_seconds),
        Restarts,
        partial(_share_of_cpus, plan.cpu_shares),
    )
    engine = plan.engine
    return EnginePool(
        catalog_entries(plan.models, supplies, engine, plan.memory),
        build=lambda spec: build_engine(replace(spec, scratch=scratch, fast_start=engine.fast_start)),
        policies=policies,
        observer=reporting.metrics,
        limits=PoolLimits(engine.hold_seconds, engine.max_held_requests, engine.heartbeat_seconds),
        memory_budget_bytes=plan.memory_budget_bytes,
        on_change=on_change,
    )


def _share_of_cpus(shares: CpuShares, spec: EngineSpec, used: Iterable[str]) -> str | None:
    """Processors for an engine that computes here, so that two do not sit on the same ones by accident."""
    if spec.kind != EngineKind.VLLM or not shares:
        return None
    return as_text(least_used(shares, [parsed(text) for text in used]))


def _tell(status: ModelStatus, feed: ModelFeed, progress: Progress) -> None:
    feed.publish(status)
    progress.on_change(status)


async def _preload(plan: Plan, scratch: Path) -> None:
    for kind in {model.settings.engine for model in plan.models}:
        try:
            await asyncio.to_thread(preload_engine, kind.value, scratch, fast_start=plan.engine.fast_start)
        except Exception:
            logger.info("engine_preload_failed", exc_info=True)


async def _settle(pool: EnginePool, progress: Progress) -> None:
    await pool.until_settled()
    progress.on_settled(pool.statuses())
