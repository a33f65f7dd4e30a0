"""The directory of one model: what the files in it are called, and what the small ones say.

Holds no descriptors and no locks; whoever writes holds `fetch.lock`. Layout:

    index.json  record.json  skeleton/  shards/<path>  fetch.lock  lease.lock  pin
    state/<number>.map  state/<number>.digests  state/status.json  state/failure.json  state/wanted  state/reserved
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from headrace_models.chunk_layout import ChunkLayout
from headrace_models.errors import ModelNotFound, StoreDamaged, UnsafeModel
from headrace_models.seek_index import MAX_INDEX_BYTES, SeekIndex
from headrace_models.store.chunk_map import PRESENT, read_marks
from headrace_models.store.files import read_part, read_record, replace_file
from headrace_models.store.locks import FileLock, Hold, try_lock
from headrace_models.store.records import Record, Status, is_key

INDEX = "index.json"
RECORD = "record.json"
FETCH_LOCK = "fetch.lock"
LEASE_LOCK = "lease.lock"
PIN = "pin"

_SLUG_CHARS = 40
_NOT_IN_SLUG = re.compile(r"[^a-z0-9]+")


def model_key(reference: str, revision: str) -> str:
    """The name of the directory: something to recognise, and 12 hex digits of a digest of both."""
    name = re.split(r"[?#]", reference)[0].rstrip("/").rpartition("/")[2].partition("@")[0].lower()
    slug = "-".join(part for part in _NOT_IN_SLUG.split(name.removeprefix("embedded:")) if part)
    digest = hashlib.sha256(f"{reference}\0{revision}".encode("utf-8", errors="surrogatepass")).hexdigest()
    return f"{slug[:_SLUG_CHARS].strip('-') or 'model'}-{digest[:12]}"


@dataclass(frozen=True)
class ModelDirectory:
    """A model's directory, published or still a draft."""

    path: Path
    record: Record

    @classmethod
    def read(cls, path: Path) -> "ModelDirectory":
        """Raises ModelNotFound where there is no directory, StoreDamaged where its record is not right, OSError."""
        data = read_record(path / RECORD)
        if data is None:
            raise missing(path, RECORD)
        return cls(path, Record.from_json(data))

    @cached_property
    def index(self) -> SeekIndex:
        """The seek index, read once. Raises ModelNotFound, StoreDamaged, OSError."""
        data = read_part(self.path / INDEX, 0, MAX_INDEX_BYTES + 1)
        if not data:
            raise missing(self.path, INDEX)
        try:
            return SeekIndex.from_json(data)
        except UnsafeModel as error:
            raise StoreDamaged(f"{self.path.name}: {error}") from error

    @property
    def is_local(self) -> bool:
        """Whether the shards lie in a directory of somebody else's."""
        return self.record.directory is not None

    @property
    def skeleton(self) -> Path:
        """Everything that an engine needs but the weights; of a local model its own directory."""
        return self.record.directory or self.path / "skeleton"

    @property
    def state(self) -> Path:
        """What changes while the model is fetched."""
        return self.path / "state"

    @property
    def reserved(self) -> Path:
        """How large the model will be, as far as whoever fetches it knows."""
        return self.state / "reserved"

    @property
    def failure(self) -> Path:
        """Why the last fetch failed."""
        return self.state / "failure.json"

    @property
    def wanted(self) -> Path:
        """The log of what readers wait for."""
        return self.state / "wanted"

    def shard(self, file: int) -> Path:
        """Where shard number `file` is."""
        return (self.record.directory or self.path / "shards") / self.index.files[file].path

    def map(self, file: int) -> Path:
        """The marks of a shard's chunks."""
        return self.state / f"{file}.map"

    def digests(self, file: int) -> Path:
        """The digests recorded of a shard's chunks; there is no such file where the index has them."""
        return self.state / f"{file}.digests"

    def keeps_digests(self, file: int) -> bool:
        """Whether digests of the shard's chunks are recorded, since none were known before."""
        return self.index.files[file].chunk_digests is None

    def marks(self, file: int) -> bytes:
        """All marks of a shard. Raises OSError."""
        return read_marks(self.map(file), 0, len(self.index.layouts[file]))

    def is_full(self) -> bool:
        """Whether every chunk is marked. Raises OSError."""
        all_marks = (self.marks(file) for file in range(len(self.index.files)))
        return all(marks.count(PRESENT) == len(marks) for marks in all_marks)

    @cached_property
    def bytes_by_group(self) -> tuple[tuple[int, ...], ...]:
        """For each shard the bytes of its header, then of each group."""
        return tuple(map(self._bytes_by_group, self.index.layouts))

    def _bytes_by_group(self, layout: ChunkLayout) -> tuple[int, ...]:
        return count_by_group(layout, range(len(layout)), len(self.index.groups))

    def present_in_order(self) -> Iterator[tuple[int, int]]:
        """(shard, chunk) of what is marked, in execution order."""
        marks = [self.marks(file) for file in range(len(self.index.files))]
        return ((file, chunk) for file, chunk in self.index.chunks_in_order() if marks[file][chunk] == 1)

    def read_status(self) -> Status:
        """What `status.json` says; where it is damaged or missing, that nothing can be believed. Raises OSError."""
        try:
            data = read_record(self.state / "status.json")
            return Status("") if data is None else Status.from_json(data)
        except StoreDamaged:
            return Status("")

    def write_status(self, status: Status) -> None:
        """Replace `status.json`; it is on disk afterwards. The caller holds `fetch.lock`. Raises OSError."""
        replace_file(self.state / "status.json", status.to_json())


def try_alone(path: Path, name: str) -> FileLock | None:
    """Lock the file `name` of the model at `path` exclusively; None when somebody is in the way.

    Raises ModelNotFound where the model is gone, OSError.
    """
    try:
        lock = try_lock(path / name, Hold.EXCLUSIVE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise removed(path) from error
    if lock is not None and not lock.is_of(path / name):
        lock.close()
        raise removed(path)
    return lock


def count_by_group(layout: ChunkLayout, chunks: Iterable[int], num_groups: int) -> tuple[int, ...]:
    """The bytes of some chunks of a shard: those of its header, then of each group."""
    counted = [0] * (num_groups + 1)
    for chunk in chunks:
        begin, end = layout.range_of(chunk)
        group = layout.group_of(chunk)
        counted[0 if group is None else group + 1] += end - begin
    return tuple(counted)


def missing(path: Path, name: str) -> ModelNotFound | StoreDamaged:
    """The error for a file that is not there or empty: somebody has removed the model, or it is damaged."""
    try:
        has_content = bool((path / name).stat().st_size)
    except (FileNotFoundError, NotADirectoryError):
        has_content = False
    # With the file there it has just been published again: that is not the model which was looked at.
    return StoreDamaged(f"{path.name}: {name} is missing") if path.is_dir() and not has_content else removed(path)


def removed(path: Path) -> ModelNotFound:
    """The error for a model that is not there, or that somebody has removed meanwhile."""
    return ModelNotFound(f"{path.name} is not in the model cache (any more)")


def model_names(models: Path) -> list[str]:
    """Keys of everything that is published below `models`, damaged or not. Raises OSError."""
    with os.scandir(models) as entries:
        return sorted(entry.name for entry in entries if is_key(entry.name) and entry.is_dir(follow_symlinks=False))
