"""From a reference to a directory that an engine can load.

A local directory is inspected and used where it is. An embedded model is made once into the cache, by its recipe,
under a lock and a temporary name (`publication`), and published with a manifest. What has its public name is complete;
`prepare` checks the sizes each time, and what is damaged is made again. Blocks: the server calls it from a thread.
"""

import contextlib
import errno
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from headrace_models.embedded import EMBEDDED_MODELS, EmbeddedModel, embedded_source, find_sources, missing_wheel
from headrace_models.errors import PreparationFailed, UnsupportedReference
from headrace_models.inspection import ModelFacts, inspect
from headrace_models.manifest import (
    MANIFEST_NAME,
    DamagedDirectory,
    Manifest,
    check_digests,
    check_sizes,
    describe_files,
    read_manifest,
)
from headrace_models.publication import exclusive_lock, make_private, publish, sweep, temporary_sibling
from headrace_models.reference import ModelReference, Scheme
from headrace_models.task import Task
from headrace_models.trust import Trust

REPORT_SECONDS = 5.0

OnProgress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A directory that an engine can load, and what is known about it."""

    reference: ModelReference
    directory: Path
    display_name: str
    facts: ModelFacts
    trust: Trust

    @property
    def task(self) -> Task:
        """What the model is for, a hint."""
        return self.facts.task

    @property
    def weight_bytes(self) -> int:
        """Size of the weights on disk."""
        return self.facts.weight_bytes


def prepare(
    reference: ModelReference,
    cache_dir: Path,
    *,
    on_progress: OnProgress = lambda _line: None,
    models: Sequence[EmbeddedModel] = EMBEDDED_MODELS,
) -> PreparedModel:
    """Make a model ready. Takes half a minute for a GGUF model the first time, milliseconds after that.

    `on_progress` gets a line at each step and every REPORT_SECONDS; what it raises ends the preparation and is passed
    on (an OSError as PreparationFailed). Of several callers, in whatever processes, one makes the directory and the
    others wait for it. Raises ModelError; nothing half-made is left behind then.
    """
    match reference.scheme:
        case Scheme.FILE:
            directory = Path(reference.location)
            return PreparedModel(reference, directory, reference.display_name, inspect(directory), Trust.NONE)
        case Scheme.EMBEDDED:
            model = embedded_source(reference.location, models)
            directory = _prepare_embedded(model, cache_dir, on_progress)
            return PreparedModel(reference, directory, model.display_name, inspect(directory), Trust.FILE)
        case Scheme.OCI | Scheme.HF | Scheme.S3 | Scheme.HTTPS | Scheme.HTTP:
            raise UnsupportedReference(f"{reference.scheme}:// models are fetched, not prepared")
        case _:
            assert_never(reference.scheme)


def embedded_directory(model: EmbeddedModel, cache_dir: Path) -> Path:
    """Where an embedded model is published."""
    return cache_dir / "embedded" / model.directory_name


def is_prepared(directory: Path) -> bool:
    """Whether `directory` is complete by its manifest; reads the manifest and sizes only."""
    try:
        check_sizes(directory, read_manifest(directory))
    except DamagedDirectory:
        return False
    return True


def _prepare_embedded(model: EmbeddedModel, cache_dir: Path, on_progress: OnProgress) -> Path:
    public = embedded_directory(model, cache_dir)
    if is_prepared(public):
        return public
    with _clear_errors(cache_dir):
        make_private(public.parent)
        lock = public.with_name(f".{model.name}.lock")
        waiting = _every(0.0, lambda: on_progress(f"waiting for another process to prepare {model.name}"))
        with exclusive_lock(lock, while_waiting=waiting):
            sweep(public.parent, name=model.name)
            if not is_prepared(public):
                _make(model, public, on_progress)
    return public


def _make(model: EmbeddedModel, public: Path, on_progress: OnProgress) -> None:
    sources = find_sources(model)
    if sources is None:
        raise missing_wheel(model)
    _check_space(public.parent, model.prepared_bytes)
    on_progress(f"checking the weights of {model.name}")
    check_digests(sources, model.files)
    with temporary_sibling(public, name=model.name) as temporary:
        on_progress(f"preparing {model.name} (once)")
        paths = [entry.path for entry in model.files]
        model.recipe.make(sources, paths, temporary, report=_reporter(model, on_progress))
        inspect(temporary)
        _write_manifest(model, temporary)
        publish(temporary, public, name=model.name)
    on_progress(f"prepared {model.name}")


def _write_manifest(model: EmbeddedModel, directory: Path) -> None:
    manifest = Manifest(f"{Scheme.EMBEDDED}:{model.name}", model.recipe.id, model.files, describe_files(directory))
    (directory / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def _check_space(directory: Path, needed_bytes: int) -> None:
    if shutil.disk_usage(directory).free < needed_bytes:
        raise OSError(errno.ENOSPC, "not enough space")


def _reporter(model: EmbeddedModel, on_progress: OnProgress) -> Callable[[int], None]:
    done_bytes, started = 0, time.monotonic()

    def line() -> None:
        seconds = time.monotonic() - started
        on_progress(f"preparing {model.name}: {done_bytes / 1e6:.0f} MB written after {seconds:.0f} s")

    tick = _every(REPORT_SECONDS, line)

    def report(written_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes = written_bytes
        tick()

    return report


def _every(first_seconds: float, action: Callable[[], None]) -> Callable[[], None]:
    """`action`, when called first after `first_seconds`, and then at most once in REPORT_SECONDS."""
    due = time.monotonic() + first_seconds

    def tick() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + REPORT_SECONDS
            action()

    return tick


@contextlib.contextmanager
def _clear_errors(cache_dir: Path) -> Iterator[None]:
    """Say in one line what the file system refused."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            message = f"no space left for the model in {cache_dir}: free some, or name another cache directory"
        else:
            message = f"cannot prepare the model in {cache_dir}: {error.strerror or error}"
        raise PreparationFailed(message) from error
