"""A model that this server offers: what the pool knows of it before anything is fetched or started."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from headrace_server.domain import ModelId, WeightsStatus
from headrace_server.engine.base import EngineSpec


async def _never() -> str:
    await asyncio.Event().wait()
    raise AssertionError


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that an engine may start on, while weights may still be on their way.

    Attributes:
        memory_bytes: what it will take of the memory budget, an estimate; 0: nothing that counts.
        failed: returns once weights that an engine may be waiting for will not come, and says why in one line.
        close: no engine uses the model's files any more. Called once.
    """

    spec: EngineSpec
    memory_bytes: int = 0
    failed: Callable[[], Awaitable[str]] = _never
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model of the catalog.

    Attributes:
        source: where it comes from, for people.
        prepare: makes its files known; may take minutes, raises `RequestError` with one clear line. Safe to cancel.
        weights: how far they are on their way to this machine.
        at_startup: it is loaded when the server starts, as far as there is room.
        keep_alive_seconds: how long it stays in memory unused; None: until its memory is needed.
        is_pinned: it is not unloaded to make room.
    """

    id: ModelId
    aliases: tuple[ModelId, ...]
    source: str
    prepare: Callable[[], Awaitable[Prepared]]
    weights: Callable[[], WeightsStatus | None] = lambda: None
    at_startup: bool = True
    keep_alive_seconds: float | None = None
    is_pinned: bool = False
