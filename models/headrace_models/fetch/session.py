"""One fetch from its reference to a sealed model, in this process; `client` runs it in a child.

One process at a time fetches a model. Another one that is asked for it looks on, tells the same progress, and takes
over where the first one leaves without finishing.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from headrace_models.errors import (
    DigestMismatch,
    FetchFailed,
    ModelBusy,
    ModelError,
    NoSpace,
    SourceChanged,
    StoreUnusable,
    is_out_of_space,
)
from headrace_models.fetch.events import (
    Completed,
    FetchEvent,
    GroupProgress,
    Indexed,
    Noted,
    Progress,
    Started,
    failure_of,
)
from headrace_models.fetch.fetcher import Fetcher, Transport
from headrace_models.fetch.locating import Located, Surroundings, check_trust, located
from headrace_models.fetch.looking_on import Wish, look_on
from headrace_models.fetch.pace import BandwidthLimit, RateMeter
from headrace_models.fetch.patience import Patience
from headrace_models.fetch.plan import FetchPlan
from headrace_models.fetch.request import FetchRequest
from headrace_models.fetch.spool import spool_directory
from headrace_models.reference import parse_reference
from headrace_models.seek_index import SeekIndex
from headrace_models.sources.base import Source, SourceFile, SourceOptions
from headrace_models.store.model_store import ModelStore
from headrace_models.store.model_writer import ModelWriter
from headrace_models.store.store_status import StoreStatus
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust

REPORT_SECONDS = 0.25

OnEvent = Callable[[FetchEvent], None]


def run_session(request: FetchRequest, on_event: OnEvent, *, stop: threading.Event) -> None:
    """Fetch a model and tell how it goes; returns after Completed or Failed, or when `stop` is set."""
    on_event(Started(request.reference, os.getpid()))
    started = time.monotonic()
    try:
        with _clear_errors(request):
            key, trust, fetched_bytes = _Session(request, on_event, stop).run()
    except ModelError as error:
        on_event(failure_of(error))
    else:
        on_event(Completed(key, trust, fetched_bytes, time.monotonic() - started))


class _Session:
    """What the steps of one fetch share."""

    def __init__(self, request: FetchRequest, on_event: OnEvent, stop: threading.Event) -> None:
        self._request = request
        self._on_event = on_event
        self._stop = stop
        self._patience = Patience(request.patience_seconds)
        self._store = ModelStore(request.cache_dir, max_bytes=request.max_bytes)

    def run(self) -> tuple[str, Trust, int]:
        """The model's key, what its bytes are worth, how many were fetched. Raises ModelError, OSError."""
        reference = parse_reference(self._request.reference)
        self._store.sweep()
        with (
            spool_directory(self._request.cache_dir) as spool,
            located(reference, self._surroundings(spool)) as found,
        ):
            check_trust(found.model, self._request.require_trust)
            with found.model.lease():
                self._tell_indexed(found.model)
                fetched_bytes = self._complete(found)
                return found.model.key, reached_trust(found.model), fetched_bytes

    def _surroundings(self, spool: Path) -> Surroundings:
        options = replace(source_options(self._request, spool), on_kept=self._patience.kept)
        return Surroundings(
            self._store,
            self._request.cache_dir,
            options,
            self._patience,
            self._stop,
            lambda line: self._on_event(Noted(line)),
        )

    def _tell_indexed(self, model: StoredModel) -> None:
        status = model.status()
        trust = status.trust if model.is_local else model.index.trust
        self._on_event(Indexed(model.key, model.revision, trust, status.total_bytes))

    def _complete(self, found: Located) -> int:
        if found.source is None and (found.model.is_local or found.model.status().sealed):
            return 0
        wish = Wish(self._request.groups, is_nothing=self._request.on_demand)
        while not self._stop.is_set():
            try:
                writer = found.model.writer()
            except ModelBusy:
                if look_on(found.model, wish, self._tell_of_other, self._stop):
                    return 0
            else:
                with writer:
                    return self._fetch(found, writer)
        raise FetchFailed("the fetch was stopped")

    def _tell_of_other(self, status: StoreStatus, rate: float) -> None:
        self._on_event(progress_of(status, 0, rate))

    def _fetch(self, found: Located, writer: ModelWriter) -> int:
        try:
            writer.clear_failure()
            if found.source is None:
                writer.seal()  # its fetch died between the last chunk and this
                return 0
            return self._fetch_checked(found, found.source, writer)
        except ModelError as error:
            writer.fail(error)
            raise

    def _fetch_checked(self, found: Located, source: Source, writer: ModelWriter) -> int:
        """Fetch, seal; what proves wrong as a whole is fetched once more."""
        index = found.model.index
        put_headers(index, found.headers, writer)
        fetched_bytes = self._bring(found.model, source, writer)
        if not writer.is_complete():
            return fetched_bytes
        try:
            writer.seal()
        except DigestMismatch as error:
            self._on_event(Noted(f"{error}; fetching it once more"))
            fetched_bytes += self._bring(found.model, source, writer)
            writer.seal()
        return fetched_bytes

    def _bring(self, model: StoredModel, source: Source, writer: ModelWriter) -> int:
        groups = None if self._request.groups is None else frozenset(self._request.groups)
        plan = FetchPlan(model.index, writer.missing(), groups=groups, on_demand=self._request.on_demand)
        make_room = partial(self._store.make_room, protect=model.key)
        make_room(plan.open_bytes)
        fetcher = Fetcher(model.index, plan, writer, self._transport(model.index, source), make_room=make_room)
        fetcher.run(
            on_tick=self._reporter(model, fetcher), is_over=lambda is_done: self._is_over(writer, is_done=is_done)
        )
        self._on_event(progress_of(model.status(), fetcher.fetched_bytes, 0.0))
        if self._stop.is_set() and not plan.is_done:
            raise FetchFailed("the fetch was stopped")
        return fetcher.fetched_bytes

    def _is_over(self, writer: ModelWriter, *, is_done: bool) -> bool:
        """On demand it is over only when everything has been demanded: more may be asked for at any time."""
        return self._stop.is_set() or (is_done and (not self._request.on_demand or writer.is_complete()))

    def _transport(self, index: SeekIndex, source: Source) -> Transport:
        polite = source.max_connections
        return Transport(
            source,
            shards_of(index, source),
            min(polite, self._request.max_connections or polite),
            BandwidthLimit(self._request.bytes_per_second, clock=time.monotonic, sleep=time.sleep),
            self._patience,
            self._request.stall_seconds,
        )

    def _reporter(self, model: StoredModel, fetcher: Fetcher) -> Callable[[], None]:
        meter = RateMeter(clock=time.monotonic)
        due = 0.0

        def report() -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + REPORT_SECONDS
                self._on_event(progress_of(model.status(), fetcher.fetched_bytes, meter.update(fetcher.fetched_bytes)))

        return report


def progress_of(status: StoreStatus, fetched_bytes: int, rate: float) -> Progress:
    """How far a model with this status is."""
    missing = status.total_bytes - status.present_bytes
    groups = tuple(GroupProgress(*group) for group in status.present_by_group)
    eta = missing / rate if rate > 0 else None
    return Progress(status.present_bytes, status.total_bytes, fetched_bytes, rate, eta, groups)


def reached_trust(model: StoredModel) -> Trust:
    """What the bytes that are here are worth now: digests of whole files say nothing of a part that was never whole."""
    status = model.status()
    unproven = status.trust is Trust.FILE and not (status.proven or model.is_local)
    return Trust.NONE if unproven else status.trust


def shards_of(index: SeekIndex, source: Source) -> tuple[SourceFile, ...]:
    """The source's files behind the index's shards, pinned as they were when the index was made.

    Raises FetchFailed: the source has not all of them; SourceChanged: one has another size.
    """
    listed = {file.path: file for file in source.files}
    for file in index.files:
        if file.path not in listed:
            raise FetchFailed(f"the source no longer has {file.path}")
        if listed[file.path].size_bytes != file.size_bytes:
            raise SourceChanged(
                f"{file.path} has another size than when it was first looked at; headrace rm starts again"
            )
    return tuple(listed[file.path] for file in index.files)


def put_headers(index: SeekIndex, headers: Mapping[str, bytes], writer: ModelWriter) -> None:
    """Keep the headers that were read to make the index."""
    for number, (file, layout) in enumerate(zip(index.files, index.layouts, strict=True)):
        header = headers.get(file.path, b"")
        for chunk in layout.inside(0, len(header)):
            begin, end = layout.range_of(chunk)
            writer.put(number, chunk, header[begin:end])


def source_options(request: FetchRequest, spool: Path) -> SourceOptions:
    """What a source may use."""
    return SourceOptions(
        spool=spool,
        insecure_hosts=frozenset(request.insecure_hosts),
        stall_seconds=request.stall_seconds,
        environ=os.environ,
    )


@contextmanager
def _clear_errors(request: FetchRequest) -> Iterator[None]:
    """What the file system refuses, in one line."""
    try:
        yield
    except OSError as error:
        if is_out_of_space(error):
            raise NoSpace(f"no space left for the model in {request.cache_dir}: free some (headrace rm)") from error
        raise StoreUnusable(f"cannot keep the model in {request.cache_dir}: {error.strerror or error}") from error
