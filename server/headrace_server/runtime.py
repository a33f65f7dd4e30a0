"""The composition root: settings in, a running server's parts out. Owns the task group that loads the models.

Nothing below this module reads settings, and nothing above it builds engines.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from headrace_server.catalog import catalog_entries
from headrace_server.domain import ModelId, ModelStatus
from headrace_server.engine.base import Engine, EngineSpec
from headrace_server.engine.pool import CatalogEntry, EnginePool
from headrace_server.engine.registry import build_engine
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


@dataclass(frozen=True, slots=True)
class Progress:
    """Who wants to know how the start goes. Called on the event loop."""

    on_change: Callable[[ModelStatus], None] = lambda _status: None
    on_settled: Callable[[tuple[ModelStatus, ...]], None] = lambda _statuses: None


@dataclass(frozen=True, slots=True)
class Plan:
    """What the settings come to, checked as far as that is quick; nothing has been started."""

    catalog: tuple[CatalogEntry, ...]
    policies: Mapping[ModelId, ModelPolicy]
    authenticator: Authenticator
    header_hold_seconds: float


def plan_runtime(settings: Settings) -> Plan:
    """Settings → plan.

    Raises:
        UsageError: settings that cannot work (keys file, model reference, a directory that is refused).
    """
    policies = {
        ModelId(model.id): ModelPolicy(model.client_chat_template, model.remote_media) for model in settings.models
    }
    return Plan(
        catalog_entries(settings), policies, build_authenticator(settings.auth), settings.server.header_hold_seconds
    )


@asynccontextmanager
async def open_runtime(plan: Plan, metrics: Metrics, progress: Progress) -> AsyncIterator[Runtime]:
    """Build everything, load the models in the background, and take it all down at the end."""
    with TemporaryDirectory(prefix="headrace-", ignore_cleanup_errors=True) as scratch:
        pool = EnginePool(plan.catalog, build=partial(_build, Path(scratch)), on_change=progress.on_change)
        metrics.watch(pool.stats, pool.statuses)
        inference = Inference(pool, plan.policies, OpenAdmission())
        runtime = Runtime(pool, inference, plan.authenticator, metrics, plan.header_hold_seconds)
        try:
            async with asyncio.TaskGroup() as tasks:
                loading = tasks.create_task(_load(pool, progress))
                yield runtime
                loading.cancel()
        finally:
            await pool.close()


def _build(scratch: Path, spec: EngineSpec) -> Engine:
    return build_engine(replace(spec, scratch=scratch))


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
