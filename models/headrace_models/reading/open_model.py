"""From a reference to tensors in one call, without any server: the library's front door.

    with open_model("hf://owner/name", Path("~/.cache/headrace").expanduser()) as model:
        for tensor in model.tensors():
            ...

A child process fetches for as long as the model is open: only what is read, or everything. What was fetched stays in
the cache directory and is shared with every other user of it. Closing ends the child and gives up the lease; tensors
must not be used after that, since an eviction may then take the bytes from under them.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from headrace_models import errors
from headrace_models.errors import FetchFailed, ModelError
from headrace_models.fetch.client import FetchProcess
from headrace_models.fetch.events import Failed, FetchEvent, Indexed
from headrace_models.fetch.request import FetchRequest
from headrace_models.reading.seekable_file import SeekableFile
from headrace_models.reading.tensors import TensorBytes, TensorReader
from headrace_models.store.model_store import ModelStore

if TYPE_CHECKING:
    from headrace_models.seek_index import SeekIndex
    from headrace_models.store.model_reader import ModelReader
    from headrace_models.store.stored_model import StoredModel

OnEvent = Callable[[FetchEvent], None]


class OpenModel:
    """A model that is being read; made by `open_model`. Its methods wait for bytes and may be called from many
    threads; they raise what `ModelReader.wait_for` raises: FetchFailed with the reason, StoreDamaged."""

    def __init__(self, reader: "ModelReader", tensors: TensorReader) -> None:
        self._reader = reader
        self._tensors = tensors

    @property
    def stored(self) -> "StoredModel":
        """The model in the store: its status, its revision, its place."""
        return self._reader.model

    @property
    def index(self) -> "SeekIndex":
        """Where every tensor is."""
        return self._reader.index

    @property
    def skeleton(self) -> Path:
        """The directory with the configuration and the tokenizer; complete."""
        return self._reader.model.skeleton

    def tensors(
        self, *, wanted: Callable[[str], bool] | None = None, groups: frozenset[str] | None = None
    ) -> Iterator[TensorBytes]:
        """See `TensorReader.iterate`."""
        return self._tensors.iterate(wanted=wanted, groups=groups)

    def group(self, name: str) -> Iterator[TensorBytes]:
        """See `TensorReader.group`."""
        return self._tensors.group(name)

    def tensor(self, name: str) -> TensorBytes:
        """See `TensorReader.tensor`."""
        return self._tensors.tensor(name)

    def release_group(self, name: str) -> None:
        """See `TensorReader.release_group`."""
        self._tensors.release_group(name)

    def open(self, shard: str) -> SeekableFile:
        """A shard as a file, by its path in the model; KeyError when the model has none there. To be closed before the
        model is."""
        paths = [file.path for file in self.index.files]
        if shard not in paths:
            raise KeyError(shard)
        return SeekableFile(self._reader, paths.index(shard))


def ignore(event: FetchEvent) -> None:
    """Tell nobody."""


@contextmanager
def open_model(
    reference: str,
    cache_dir: Path,
    *,
    on_demand: bool = True,
    max_bytes: int | None = None,
    on_event: OnEvent = ignore,
) -> Iterator[OpenModel]:
    """Find out a model's revision, bring its configuration, and give it out as soon as tensors may be asked for.

    `on_demand`: fetch only what is read; otherwise everything, in execution order, what is read first. `max_bytes`
    bounds the cache. Raises the ModelError that ended the fetch, and OSError when no process can be started.
    """
    request = FetchRequest(reference, cache_dir, max_bytes=max_bytes, on_demand=on_demand)
    with open_request(request, on_event=on_event) as model:
        yield model


@contextmanager
def open_request(request: FetchRequest, *, on_event: OnEvent = ignore) -> Iterator[OpenModel]:
    """`open_model` with all that a fetch can be asked for. `on_event` is called in a thread and must not raise."""
    process = FetchProcess(request)
    found: Future[Indexed] = Future()
    follower = threading.Thread(target=_follow, args=(process, on_event, found), name="follow-fetch")
    process.start()
    follower.start()
    try:
        model = ModelStore(request.cache_dir).open_key(found.result().key)
        with model.reader() as reader, TensorReader(reader) as tensors:
            yield OpenModel(reader, tensors)
    finally:
        process.stop()
        follower.join()


def _follow(process: FetchProcess, on_event: OnEvent, found: "Future[Indexed]") -> None:
    try:
        for event in process.events():
            if not found.done():  # a child that was started again tells it again
                _tell(event, found)
            on_event(event)
    finally:
        if not found.done():
            found.set_exception(FetchFailed("the fetch ended before the model was known"))


def _tell(event: FetchEvent, found: "Future[Indexed]") -> None:
    match event:
        case Indexed():
            found.set_result(event)
        case Failed():
            found.set_exception(_error_of(event))
        case _:
            pass


def _error_of(failed: Failed) -> ModelError:
    kind = getattr(errors, failed.kind, FetchFailed)
    known = isinstance(kind, type) and issubclass(kind, ModelError)
    return (kind if known else FetchFailed)(failed.message)
