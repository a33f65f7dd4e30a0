"""From a reference to a model that has its name in the store: resolve, fetch the skeleton, check, index, publish.

Everything up to here is small (a few MB and the shards' headers). A revision that the store knows costs nothing but
the question which revision it is, and a reference that cannot change not even that. While a source is away, the
revision that the reference meant last serves, if it is complete; that is said, never silent.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from headrace_models.embedded import embedded_source
from headrace_models.errors import SourceUnavailable, UnsafeModel
from headrace_models.fetch.patience import Patience, retrying
from headrace_models.fetch.patient_source import PatientSource
from headrace_models.fetch.skeleton import fetch_skeleton
from headrace_models.index_building import build_index, index_of_directory
from headrace_models.inspection import inspect, inspect_skeleton, read_json_object
from headrace_models.model_files import choose_files
from headrace_models.preparation import prepare
from headrace_models.reading.header_files import write_header_files
from headrace_models.reference import ModelReference, Scheme
from headrace_models.sources.base import Source, SourceOptions
from headrace_models.sources.opening import open_source
from headrace_models.store.model_store import ModelStore
from headrace_models.store.stored_model import StoredModel
from headrace_models.trust import Trust


@dataclass(frozen=True, slots=True)
class Located:
    """A published model. `source` has its bytes; None: they are all here. `headers` are those that were just read."""

    model: StoredModel
    source: Source | None = None
    headers: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What locating needs beside the reference."""

    store: ModelStore
    cache_dir: Path
    options: SourceOptions
    patience: Patience
    stop: threading.Event
    note: Callable[[str], None]


@contextmanager
def located(reference: ModelReference, around: Surroundings) -> Iterator[Located]:
    """The model of a reference; its source is closed at the end. Raises ModelError, OSError."""
    match reference.scheme:
        case Scheme.EMBEDDED:
            yield Located(_embedded(reference, around))
        case Scheme.FILE:
            directory = Path(reference.location)
            inspect(directory)
            yield Located(_register(reference, directory, Trust.NONE, around.store))
        case _:
            yield from _remote(reference, around)


def _embedded(reference: ModelReference, around: Surroundings) -> StoredModel:
    embedded_source(reference.location)
    prepared = prepare(reference, around.cache_dir, on_progress=around.note)
    return _register(reference, prepared.directory, Trust.FILE, around.store)


def _register(reference: ModelReference, directory: Path, trust: Trust, store: ModelStore) -> StoredModel:
    """Keep the index of a directory; its files stay where they are."""
    index = index_of_directory(directory, str(reference), digests=False)
    model = store.get(str(reference), index.revision)
    if model is None:
        with store.draft(str(reference), index.revision) as draft:
            model = draft.publish(index, directory=directory, trust=trust)
    store.remember(str(reference), model)
    return model


def _remote(reference: ModelReference, around: Surroundings) -> Iterator[Located]:
    known = around.store.find(str(reference))
    status = None if known is None else known.status()
    complete = known if status is not None and status.complete else None
    # A fetch that died before its seal has proved nothing: its source may be needed once more.
    if complete is not None and status is not None and status.sealed and reference.is_immutable:
        yield Located(complete)
        return
    try:
        source = _open(reference, around, wait=complete is None)
    except SourceUnavailable as error:
        if complete is None:
            raise
        around.note(f"{error}; the revision fetched earlier serves: {complete.revision}")
        yield Located(complete)
        return
    try:
        yield _from_source(reference, source, around)
    finally:
        source.close()


def _open(reference: ModelReference, around: Surroundings, *, wait: bool) -> Source:
    """With something to fall back on a source is asked once; without, as long as patience lasts."""
    if not wait:
        return open_source(reference, around.options)
    return retrying(lambda: open_source(reference, around.options), around.patience, wait=around.stop.wait)


def _from_source(reference: ModelReference, source: Source, around: Surroundings) -> Located:
    model = around.store.get(str(reference), source.revision)
    headers: Mapping[str, bytes] = {}
    if model is None:
        model, headers = _publish(reference, source, around)
    around.store.remember(str(reference), model)
    return Located(model, source, headers)


def _publish(
    reference: ModelReference, source: Source, around: Surroundings
) -> tuple[StoredModel, Mapping[str, bytes]]:
    patient = PatientSource(source, around.patience, around.stop)
    files = choose_files(source.files)
    with around.store.draft(str(reference), source.revision) as draft:
        if draft.existing is not None:
            return draft.existing, {}
        fetch_skeleton(source, files.skeleton, draft.skeleton, around.patience, around.stop)
        inspect_skeleton(draft.skeleton)
        built = build_index(patient, str(reference), files, read_json_object(draft.skeleton / "config.json"))
        for line in (*files.notes, *built.notes):
            around.note(line)
        write_header_files(built.index, draft.skeleton)
        return draft.publish(built.index), built.headers


def check_trust(model: StoredModel, required: Trust) -> None:
    """Raise UnsafeModel where the model's bytes cannot be checked as far as the operator asks."""
    trust = model.status().trust if model.is_local else model.index.trust
    if not trust.reaches(required):
        raise UnsafeModel(
            f"{model.reference} can be checked as far as {trust.value!r}, and {required.value!r} is asked for"
        )
