"""What the rows of `bench-cache` share: the model that is measured, the folder for everything, the peers, how often.

Synthetic checkpoints are made when a row first asks for one. Everything lies in one temporary folder, which goes with
the run.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import assert_never

from loadtests.cache_checkpoint import Shape, write_checkpoint
from loadtests.cache_served import ServedModel, serve
from loadtests.origin.bucket import BUCKET
from loadtests.origin.link import Link

MIB = 2**20
LATENCY_SECONDS = 0.02

# 765 MiB in four shards: long enough for three per cent to be seen, and two stages of equal size.
_LARGE = Shape(num_layers=20, vocabulary=32_000, num_shards=4)
# 240 MiB each.
_SWAPPED = Shape(num_layers=7)


class Protocol(StrEnum):
    """How the origin is spoken to."""

    HTTP = "http"
    OCI = "oci"
    OCI_INDEXED = "oci, pinned index"
    S3 = "s3"
    HF = "hf"


def reference_of(protocol: Protocol, address: str, model: str) -> str:
    """How a model of the origin at `address` is named."""
    match protocol:
        case Protocol.HTTP:
            return f"http://{address}/files/{model}/"
        case Protocol.OCI:
            return f"oci://{address}/{model}:latest"
        case Protocol.OCI_INDEXED:
            return f"oci://{address}/{model}:indexed"
        case Protocol.S3:
            return f"s3://{BUCKET}/{model}/"
        case Protocol.HF:
            return f"hf://{model}"
        case _:
            assert_never(protocol)


def link_of(mib_per_second: float) -> Link:
    """A link of so many MiB/s and 20 ms."""
    return Link(bytes_per_second=mib_per_second * MIB, latency_seconds=LATENCY_SECONDS)


@dataclass(slots=True)
class Setting:
    """One run of the benchmark. `peers` is where they are installed, None where they are not."""

    model: ServedModel
    scratch: Path
    peers: Path | None
    num_runs: int
    tell: Callable[[str], None]
    large_shape: Shape = _LARGE
    swapped_shape: Shape = _SWAPPED
    _made: dict[str, ServedModel] = field(default_factory=dict)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder, gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            yield Path(name)

    def large(self) -> ServedModel:
        """The larger one, its head apart from its embedding."""
        return self._checkpoint("acme/large", self.large_shape, seed=1)

    def swapped(self) -> tuple[ServedModel, ServedModel]:
        """Two of equal size."""
        shape = self.swapped_shape
        return self._checkpoint("acme/one", shape, seed=2), self._checkpoint("acme/other", shape, seed=3)

    def _checkpoint(self, name: str, shape: Shape, *, seed: int) -> ServedModel:
        if name not in self._made:
            self._made[name] = serve(name, write_checkpoint(self.scratch / name, shape, seed=seed))
        return self._made[name]
