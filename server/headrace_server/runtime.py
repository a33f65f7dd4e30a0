"""The composition root: settings in, a running server's parts out. Owns the task group that loads the models.

Nothing below this module reads settings, and nothing above it builds engines.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from headrace_server.catalog import PlannedModel, cache_directory, catalog_entries, orders_of, plan_models
from headrace_server.domain import ModelId, ModelStatus
from headrace_server.engine.base import Engine, EngineSpec
from headrace_server.engine.model_storage import ModelStorage, cached_models
from headrace_server.engine.model_supply import ModelSupply
from headrace_server.engine.pool import EnginePool
from headrace_server.engine.registry import build_engine, preload_engine
from headrace_server.observability.events import ModelFeed
from headrace_server.observability.metrics import Metrics
from headrace_server.serving.admission import OpenAdmission
from headrace_server.serving.inference import Inference
from headrace_server.serving.policy import ModelPolicy
from headrace_server.settings.schema import AuthMode, AuthSettings, Settings
from headrace_server.tenancy.keys import Authenticator, OpenDoor, read_keys_file

logger = logging.getLogger(__name__)


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
    authenticator: Authenticator
    header_hold_seconds: float
    cache_dir: Path


def plan_runtime(settings: Settings) -> Plan:
    """Settings → plan.

    Raises:
        UsageError: settings that cannot work (keys file, model reference, a directory that is refused).
    """
    policies = {
        ModelId(model.id): ModelPolicy(model.client_chat_template, model.remote_media) for model in settings.models
    }
    return Plan(
        plan_models(settings),
        policies,
        build_authenticator(settings.auth),
        settings.server.header_hold_seconds,
        cache_directory(settings.cache),
    )


@asynccontextmanager
async def open_runtime(plan: Plan, reporting: Reporting, progress: Progress) -> AsyncIterator[Runtime]:
    """Build everything, fetch and load the models in the background, and take it all down at the end."""
    with TemporaryDirectory(prefix="headrace-", ignore_cleanup_errors=True) as scratch:
        supply = ModelSupply(orders_of(plan.models), on_change=lambda model: feed.publish(pool.status(model)))
        feed = reporting.feed
        pool = EnginePool(
            catalog_entries(plan.models, supply),
            build=partial(_build, Path(scratch)),
            on_change=lambda status: _tell(status, feed, progress),
        )
        reporting.metrics.watch(pool.stats, pool.statuses)
        runtime = Runtime(
            pool,
            Inference(pool, plan.policies, OpenAdmission()),
            plan.authenticator,
            reporting.metrics,
            plan.header_hold_seconds,
            feed,
            ModelStorage(partial(cached_models, plan.cache_dir)),
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                # In this order: the first fetch is on its way before any engine is imported.
                work = [
                    tasks.create_task(supply.run()),
                    tasks.create_task(_preload(plan.models, Path(scratch))),
                    tasks.create_task(_load(pool, progress)),
                ]
                yield runtime
                for task in work:
                    task.cancel()
        finally:
            feed.close()
            await pool.close()
            supply.close()  # not before the engines, which read what is leased


def _tell(status: ModelStatus, feed: ModelFeed, progress: Progress) -> None:
    feed.publish(status)
    progress.on_change(status)


def _build(scratch: Path, spec: EngineSpec) -> Engine:
    return build_engine(replace(spec, scratch=scratch))


async def _preload(models: Iterable[PlannedModel], scratch: Path) -> None:
    for kind in {model.settings.engine for model in models}:
        try:
            await asyncio.to_thread(preload_engine, kind.value, scratch)
        except Exception:
            logger.info("engine_preload_failed", exc_info=True)


async def _load(pool: EnginePool, progress: Progress) -> None:
    await pool.load_all()
    progress.on_settled(pool.statuses())


def build_authenticator(auth: AuthSettings) -> Authenticator:
    """Who decides about keys, from the settings.

    Raises:
        UsageError: the keys file cannot be used.
    """
    if auth.effective_mode is AuthMode.NONE or auth.keys_file is None:
        return OpenDoor()
    return read_keys_file(auth.keys_file)
