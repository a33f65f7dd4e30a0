"""What the store on disk holds, as the server tells of it: looked at, never changed, and nothing is fetched for it.

Looking reads indexes and marks, so it happens in a thread, and once at a time however many ask.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from headrace_models.errors import ModelError, ModelNotFound, StoreDamaged
from headrace_models.store.model_store import ModelStore
from headrace_models.store.stored_model import StoredModel
from headrace_server.domain import CachedModel
from headrace_server.errors import EngineFault

logger = logging.getLogger(__name__)


class ModelStorage:
    """The store of this server."""

    def __init__(self, look: Callable[[], tuple[CachedModel, ...]]) -> None:
        """`look` blocks, and raises ModelError where the store cannot be read."""
        self._look = look
        self._looking = asyncio.Lock()

    async def cached(self) -> tuple[CachedModel, ...]:
        """Every model that is there, wholly or in part.

        Raises:
            EngineFault: the store cannot be read.
        """
        async with self._looking:
            try:
                return await asyncio.to_thread(self._look)
            except ModelError as error:
                logger.warning("model_cache_unreadable", extra={"detail": str(error)})
                raise EngineFault("the model cache cannot be read; the log says why") from error


def cached_models(cache_dir: Path) -> tuple[CachedModel, ...]:
    """The models of a store, by key. Blocks; raises ModelError."""
    if not (cache_dir / "models").is_dir():  # and looking makes none
        return ()
    return models_of(ModelStore(cache_dir))


def models_of(store: ModelStore) -> tuple[CachedModel, ...]:
    """The models of a store, by key. Blocks; raises ModelError."""
    found: list[CachedModel] = []
    for model in store.models():
        with contextlib.suppress(ModelNotFound, StoreDamaged):  # removed or broken since it was listed
            found.append(cached_model(model))
    return tuple(sorted(found, key=lambda model: model.key))


def cached_model(model: StoredModel) -> CachedModel:
    """One model as it stands now. Blocks; raises ModelError."""
    status = model.status()
    return CachedModel(
        key=model.key,
        reference=model.reference,
        revision=model.revision,
        trust=status.trust,
        present_bytes=status.present_bytes,
        total_bytes=status.total_bytes,
        allocated_bytes=status.allocated_bytes,
        last_used=status.last_used,
        is_complete=status.complete,
        is_pinned=status.pinned,
        is_leased=status.leased,
        is_fetching=status.fetching,
    )
