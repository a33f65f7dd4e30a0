"""Small models for tests of the store: shards in memory with an index built by hand, and what fetches them from there.

The shards are what safetensors would write: a header, then tensors of 64 KiB, which are chunks of their own. The same
arguments give the same bytes. Imports little, since children of the crash campaigns import it too.
"""

import contextlib
import hashlib
import json
import os
import random
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from headrace_models.digest import Sha256
from headrace_models.layer_plan import EMBEDDING, HEAD, layer_group
from headrace_models.seek_index import IndexedFile, IndexedTensor, SeekIndex
from headrace_models.sources.base import FileRange, Literal, Proof
from headrace_models.store.model_store import ModelStore
from headrace_models.store.model_writer import ModelWriter
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust

TENSOR_BYTES = 64 << 10
OTHER_BOOT = "another-boot"


@dataclass(frozen=True)
class FakeModel:
    """A model's index and the bytes of its shards."""

    index: SeekIndex
    shards: tuple[bytes, ...]

    @cached_property
    def chunks(self) -> tuple[tuple[int, int], ...]:
        """(shard, chunk) of everything, in execution order."""
        return tuple(self.index.chunks_in_order())

    def data(self, file: int, chunk: int) -> bytes:
        """The right bytes of a chunk."""
        begin, end = self.index.layouts[file].range_of(chunk)
        return self.shards[file][begin:end]

    def wrong(self, file: int, chunk: int) -> bytes:
        """As many wrong ones."""
        data = self.data(file, chunk)
        return data[:-1] + bytes([data[-1] ^ 1])

    def local(self, directory: Path) -> None:
        """Write the shards as files of a directory."""
        for file, data in zip(self.index.files, self.shards, strict=True):
            (directory / file.path).parent.mkdir(parents=True, exist_ok=True)
            (directory / file.path).write_bytes(data)


@contextlib.contextmanager
def scratch_cache() -> Iterator[Path]:
    """A cache directory in memory where that can be had: hundreds of `fsync` on a disk take seconds."""
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="store-", dir=parent) as directory:
        yield Path(directory)


def fake_model(
    trust: Trust = Trust.NONE,
    *,
    shards: int = 2,
    layers: int = 2,
    seed: int = 0,
    tensor_bytes: int = TENSOR_BYTES,
    reference: str = "hf://org/tiny",
) -> FakeModel:
    """A model with an embedding, `layers` layers of two tensors and a head, dealt out to `shards` shards.

    CHUNK: the index has a digest per chunk. FILE: one proof per shard, and one over the last two, with bytes between.
    """
    groups = (EMBEDDING, *map(layer_group, range(layers)), HEAD)
    names = ["embed", *(f"layers.{n}.{part}" for n in range(layers) for part in "ab"), "lm_head"]
    of_name = [0, *(1 + n for n in range(layers) for _part in "ab"), len(groups) - 1]
    random_bytes = random.Random(seed)
    tensors: list[IndexedTensor] = []
    files: list[IndexedFile] = []
    contents: list[bytes] = []
    for file in range(shards):
        mine = [
            (name, group) for at, (name, group) in enumerate(zip(names, of_name, strict=True)) if at % shards == file
        ]
        header = _header([name for name, _group in mine], tensor_bytes)
        begins = [len(header) + at * tensor_bytes for at in range(len(mine))]
        tensors += [
            IndexedTensor(name, file, begin, begin + tensor_bytes, "U8", (tensor_bytes,), group)
            for (name, group), begin in zip(mine, begins, strict=True)
        ]
        contents.append(header + random_bytes.randbytes(tensor_bytes * len(mine)))
        files.append(IndexedFile(f"model-{file:05}.safetensors", len(contents[-1]), len(header), None, None))
    tensors.sort(key=lambda tensor: (tensor.group, tensor.file, tensor.begin))
    index = SeekIndex(reference, f"r{seed}", None, groups, tuple(files), tuple(tensors), ())
    return _trusted(FakeModel(index, tuple(contents)), trust)


def published(store: ModelStore, fake: FakeModel) -> StoredModel:
    """The model in the store, with nothing of its weights if it was not there."""
    with store.draft(fake.index.reference, fake.index.revision) as draft:
        if draft.existing is None:
            (draft.skeleton / "config.json").write_text("{}")
        return draft.publish(fake.index)


def put(writer: ModelWriter, fake: FakeModel, chunks: Iterable[tuple[int, int]] | None = None) -> None:
    """Put the right bytes of `chunks`, of everything that is missing unless given."""
    for file, chunk in writer.missing() if chunks is None else chunks:
        writer.put(file, chunk, fake.data(file, chunk))


def fetched(store: ModelStore, fake: FakeModel) -> StoredModel:
    """The model in the store, complete and sealed."""
    model = published(store, fake)
    with model.writer() as writer:
        put(writer, fake)
        writer.seal()
    return model


def present(model: StoredModel) -> set[tuple[int, int]]:
    """(shard, chunk) of what the maps on disk say is there."""
    maps = [(model.directory / f"state/{file}.map").read_bytes() for file in range(len(model.index.files))]
    return {(file, chunk) for file, marks in enumerate(maps) for chunk, mark in enumerate(marks) if mark == 1}


def bytes_on_disk(model: StoredModel, file: int, chunk: int) -> bytes:
    """What the shard file has where a chunk belongs."""
    begin, end = model.index.layouts[file].range_of(chunk)
    return model.shard_path(file).read_bytes()[begin:end]


def overwrite(path: Path, begin: int, data: bytes) -> None:
    """Change a file behind the store's back."""
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(data)


def restart_machine(model: StoredModel) -> None:
    """From here on the state was written before the machine was started."""
    path = model.directory / "state/status.json"
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps({**document, "boot_id": OTHER_BOOT}))


def _header(names: list[str], tensor_bytes: int) -> bytes:
    content = {
        name: {"dtype": "U8", "shape": [tensor_bytes], "data_offsets": [at * tensor_bytes, (at + 1) * tensor_bytes]}
        for at, name in enumerate(names)
    }
    encoded = json.dumps(content).encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _trusted(fake: FakeModel, trust: Trust) -> FakeModel:
    index = fake.index
    match trust:
        case Trust.NONE:
            return fake
        case Trust.CHUNK:
            files = tuple(
                replace(file, chunk_digests=tuple(_sha256(fake.data(number, chunk)) for chunk in range(len(layout))))
                for number, (file, layout) in enumerate(zip(index.files, index.layouts, strict=True))
            )
            return FakeModel(replace(index, files=files), fake.shards)
        case Trust.FILE:
            return FakeModel(replace(index, proofs=_proofs(fake)), fake.shards)


def _proofs(fake: FakeModel) -> tuple[Proof, ...]:
    wholes = [FileRange(file.path, 0, file.size_bytes) for file in fake.index.files]
    alone = [Proof(_sha256(data), (whole,)) for data, whole in zip(fake.shards[:-2], wholes[:-2], strict=True)]
    together = Literal(b"between")
    parts = (wholes[-1],) if len(wholes) == 1 else (wholes[-2], together, wholes[-1])
    data = fake.shards[-1] if len(wholes) == 1 else fake.shards[-2] + together.data + fake.shards[-1]
    return (*alone, Proof(_sha256(data), parts))


def _sha256(data: bytes) -> Sha256:
    return Sha256(hashlib.sha256(data).hexdigest())
