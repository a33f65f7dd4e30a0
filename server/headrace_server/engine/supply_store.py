"""Models of the store on disk, leased in threads, because that waits for locks and reads files.

A lease goes to the one who asked or back to the store: whoever is cancelled while a thread takes a lease for it never
hears of that lease, and the thread returns it. Knows nothing of fetches.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headrace_models.inspection import ModelFacts, facts_of
from headrace_models.store.model_store import ModelStore
from headrace_models.store.store_status import StoreStatus
from headrace_models.store.stored_model import StoredModel
from headrace_server.domain import GroupBytes, WeightsStatus


class Held(Protocol):
    """A lease on a model of the store."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model of the store that is ours to use until `lease` is closed.

    `weights` is how it stood once it was leased; complete means that nothing has to be fetched or proven any more.
    """

    skeleton: Path
    facts: ModelFacts
    weights: WeightsStatus
    lease: Held


def open_stored_model(cache_dir: Path, key: str) -> OpenedModel:
    """Lease a model of the store and read what it is. Blocks; raises ModelError.

    The first time after a server's start it takes 4 ms for a checkpoint of 270 tensors, of which 3 are the index.
    """
    model = ModelStore(cache_dir).open_key(key)
    lease = model.lease()
    try:
        facts = facts_of(model.skeleton, model.index)
        return OpenedModel(model.skeleton, facts, _weights(model, model.status()), lease)
    except BaseException:
        lease.close()
        raise


def _weights(model: StoredModel, status: StoreStatus) -> WeightsStatus:
    return WeightsStatus(
        key=model.key,
        revision=model.revision,
        trust=status.trust if model.is_local else model.index.trust,
        present_bytes=status.present_bytes,
        total_bytes=status.total_bytes,
        # One that is complete and not sealed may still have to prove its bytes; a local one is never sealed.
        is_complete=status.complete and (status.sealed or model.is_local),
        groups=tuple(GroupBytes(*group) for group in status.present_by_group),
    )


async def open_in_thread(
    open_model: Callable[[Path, str], OpenedModel], cache_dir: Path, key: str, *, threads: Executor
) -> OpenedModel:
    """`open_model` without blocking the event loop. Safe to cancel; raises what it does."""
    opening = threads.submit(open_model, cache_dir, key)
    try:
        return await asyncio.wrap_future(opening)
    except BaseException:
        opening.add_done_callback(_give_back)  # now, or in the thread once it has the lease
        raise


def _give_back(opening: Future[OpenedModel]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().lease.close()
