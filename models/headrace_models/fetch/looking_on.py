"""Looking on while another process fetches the model: tell how it gets on, and see that it gets on.

The other process may have been asked for less: some groups, or only what readers wait for. Nobody else can fetch while
it lives, so where nothing comes for IDLE_SECONDS the next missing tensors are demanded of it, as a reader would. Never
writes to the model.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from headrace_models.fetch.pace import RateMeter
from headrace_models.store.model_reader import ModelReader
from headrace_models.store.store_status import StoreStatus
from headrace_models.store.stored_model import StoredModel

LOOK_SECONDS = 0.25
IDLE_SECONDS = 1.0
DEMANDED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of the model: these groups of tensors, None for all; `is_nothing`: only what readers ask for."""

    groups: tuple[str, ...] | None
    is_nothing: bool


def look_on(
    model: StoredModel, wish: Wish, on_look: Callable[[StoreStatus, float], None], stop: threading.Event
) -> bool:
    """Whether another process has finished the model; False when it left, or `stop` was set. `on_look` gets the status
    and the bytes per second. Raises StoreError, ModelNotFound."""
    with model.reader() as reader:
        before = present = model.status().present_bytes
        meter, idle_since = RateMeter(clock=time.monotonic), time.monotonic()
        while not stop.wait(LOOK_SECONDS):
            status = model.status()
            on_look(status, meter.update(status.present_bytes - before))
            if status.sealed or not status.fetching:
                return status.sealed
            if status.present_bytes != present:
                present, idle_since = status.present_bytes, time.monotonic()
            elif time.monotonic() - idle_since >= IDLE_SECONDS:
                idle_since = time.monotonic()
                _demand_missing(reader, wish)
    return False


def _demand_missing(reader: ModelReader, wish: Wish) -> None:
    """The next tensors that are missing, DEMANDED_BYTES of them."""
    demanded_bytes = 0
    for tensor in () if wish.is_nothing else reader.index.tensors:
        if demanded_bytes >= DEMANDED_BYTES:
            return
        is_wanted = wish.groups is None or reader.index.groups[tensor.group] in wish.groups
        if is_wanted and not reader.is_present(tensor.file, tensor.begin, tensor.end):
            reader.want(tensor.file, tensor.begin, tensor.end)
            demanded_bytes += tensor.size_bytes
