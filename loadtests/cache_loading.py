"""Copies all tensors of a model that lies complete on this disk into memory that is there already, as a loader does.

    python -m loadtests.cache_loading store|safetensors CACHE_DIR KEY

`store` reads by our library, `safetensors` maps the very same files by the library of that name. Prints one `Loading`
as JSON. Memory is the process's own (Anonymous in smaps_rollup), beyond what it was with the destinations in place; it
is looked at while a load of its own runs, so that looking costs none of those that are timed.
"""

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace_models.reading.tensors import TensorReader
from headrace_models.store.model_store import ModelStore
from headrace_models.store.stored_model import StoredModel
from loadtests.cache_served import digest_of_tensors
from loadtests.peers.intake import anonymous_bytes

NUM_LOADS = 5

_LOOK_SECONDS = 0.002
_ANONYMOUS = re.compile(r"^Anonymous:\s+(\d+) kB$", re.MULTILINE)

Destinations = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Loading:
    """What one process measured: `seconds` of each load, the first one first."""

    seconds: tuple[float, ...]
    extra_anonymous_bytes: int
    num_tensors: int
    digest: str


def _from_store(model: StoredModel, destinations: Destinations) -> None:
    import torch

    dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    with model.reader() as reader, TensorReader(reader) as tensors:
        for tensor in tensors.iterate():
            source = torch.frombuffer(tensor.data, dtype=dtypes[tensor.dtype])
            destinations[tensor.name].copy_(source.reshape(tensor.shape))


def _from_safetensors(paths: list[Path], destinations: Destinations) -> None:
    from safetensors import safe_open

    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                destinations[name].copy_(file.get_tensor(name))


def _empty(paths: list[Path]) -> dict[str, Any]:
    """A place for every tensor, with all of its pages."""
    import torch
    from safetensors import safe_open

    found = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                found[name] = torch.zeros_like(file.get_tensor(name)).fill_(1)
    return found


def _digest(destinations: Destinations) -> str:
    import torch

    return digest_of_tensors(
        {
            name: hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy()).hexdigest()
            for name, tensor in destinations.items()
        }
    )


def _extra_bytes(load: Callable[[], None]) -> int:
    """The most that a load took beside what is there before it."""
    before, seen, ended = _smaps_anonymous(), [anonymous_bytes()], threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_SECONDS):
            seen.append(anonymous_bytes())

    status_before = seen[0]
    thread = threading.Thread(target=look)
    thread.start()
    load()
    ended.set()
    thread.join()
    return max(_smaps_anonymous() - before, max(seen) - status_before)


def _smaps_anonymous() -> int:
    match = _ANONYMOUS.search(Path("/proc/self/smaps_rollup").read_text())
    return int(match[1]) << 10 if match else 0


def _loads(load: Callable[[], None]) -> Iterator[float]:
    for _ in range(NUM_LOADS):
        began = time.monotonic()
        load()
        yield time.monotonic() - began


def measure(side: str, cache_dir: Path, key: str) -> Loading:
    """All loads of one side. Raises ModelError."""
    stored = ModelStore(cache_dir).open_key(key)
    paths = [stored.shard_path(number) for number in range(len(stored.index.files))]
    destinations = _empty(paths)

    def load() -> None:
        if side == "store":
            _from_store(ModelStore(cache_dir).open_key(key), destinations)
        else:
            _from_safetensors(paths, destinations)

    extra = _extra_bytes(load)
    for tensor in destinations.values():
        tensor.fill_(1)
    seconds = tuple(_loads(load))
    return Loading(seconds, extra, len(destinations), _digest(destinations))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))))
