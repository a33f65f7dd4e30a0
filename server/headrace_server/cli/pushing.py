"""`headrace push`: a directory, a GGUF file or a model of the cache into a registry, with its seek index.

Nothing is fetched for it: a model that is not complete here is refused, with what completes it. What an interrupted
push has sent stays in the registry, and the next one finds it there.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from headrace_models import ModelError, ModelNotFound, ModelReference, Scheme, parse_reference
from headrace_models.fetch.pace import RateMeter
from headrace_models.locations import OciLocation
from headrace_models.push.blob_upload import Outcome
from headrace_models.push.collecting import (
    GGUF_SUFFIX,
    contents_of_directory,
    contents_of_gguf,
    contents_of_stored,
)
from headrace_models.push.contents import ModelContents
from headrace_models.push.formats import ArtifactFormat
from headrace_models.push.session import NUM_CONNECTIONS, Pushed, PushOptions, Reporter, push_model
from headrace_models.reference import oci_location
from headrace_models.sources.base import SourceOptions
from headrace_server.catalog import cache_directory, model_settings
from headrace_server.cli.embedded_directories import prepared_directory
from headrace_server.cli.model_names import key_named, open_store, settings_named
from headrace_server.cli.progress_display import ProgressDisplay, duration_text, open_display, size_text
from headrace_server.errors import UsageError
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import Settings

EXIT_FAILED = 1
# A registry answers when it has put a blob in its place, which may be a copy of 64 MiB or of all of it, and takes bytes
# no faster than its storage does.
ANSWER_SECONDS = 60.0
TAKING_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class PushCommand:
    """What the command line says."""

    source: str
    destination: str
    form: ArtifactFormat = ArtifactFormat.MODELPACK
    max_connections: int | None = None
    as_json: bool = False


def push(command: PushCommand, config: Path | None) -> int:
    """Push a model and print the reference that names it for ever. Returns the exit code.

    Raises:
        UsageError: the destination is no tag of a repository, or the source a configured model without weights.
        ModelError: the model is not here, is refused, changes under way, or the registry does not take it.
    """
    settings = load_settings(config=config)
    destination = destination_of(command.destination)
    options = PushOptions(
        SourceOptions(
            spool=cache_directory(settings.cache) / "spool",
            insecure_hosts=frozenset(settings.cache.insecure_hosts),
            stall_seconds=ANSWER_SECONDS,
            connect_seconds=TAKING_SECONDS,
            environ=os.environ,
        ),
        command.form,
        command.max_connections or NUM_CONNECTIONS,
    )
    try:
        with open_display(command.source) as display, contents_named(command.source, settings) as contents:
            for note in contents.notes:
                display.note(note)
            pushed = push_model(contents, destination, options, reporter(display))
    except KeyboardInterrupt:
        typer.echo("headrace: interrupted; files that have been sent are not sent again by the next push", err=True)
        sys.stdout.flush()
        os._exit(EXIT_FAILED)  # threads that still wait for the registry are not waited for
    typer.echo(json.dumps(document(pushed, command, destination)) if command.as_json else summary(pushed, destination))
    return 0


def destination_of(text: str) -> OciLocation:
    """The repository and tag to push to.

    Raises:
        UsageError: it is something else.
    """
    try:
        reference = parse_reference(text)
    except ModelError as error:
        raise UsageError(f"destination {text[:100]!r}: {error}") from error
    if reference.scheme is not Scheme.OCI:
        raise UsageError(f"models are pushed to registries: oci://registry/repository:tag, not {text[:100]!r}")
    if reference.is_immutable:
        raise UsageError(f"a digest follows from what is pushed: leave it out of {text[:200]!r}")
    return oci_location(reference)


@contextmanager
def contents_named(name: str, settings: Settings) -> Iterator[ModelContents]:
    """What is pushed of the model with this id, alias, path, reference or key; a model of the cache is leased until the
    end.

    Raises:
        UsageError: several models could be meant, or a configured one that has no weights here.
        ModelError: there is no such model here, not all of it is, or it is refused.
    """
    reference = _reference_named(name, settings)
    match reference:
        case ModelReference(Scheme.FILE, location):
            path = Path(location)
            yield contents_of_gguf(path) if _is_gguf(path) else contents_of_directory(reference)
        case ModelReference(Scheme.EMBEDDED, _):
            directory = prepared_directory(str(reference), cache_directory(settings.cache))
            if directory is None:
                raise ModelNotFound(f"{reference} has not been prepared yet: headrace pull {reference}")
            yield contents_of_directory(ModelReference(Scheme.FILE, str(directory)))
        case _:
            yield from _stored_contents(name, reference, settings)


def _stored_contents(name: str, reference: ModelReference | None, settings: Settings) -> Iterator[ModelContents]:
    store = open_store(settings)
    if store is None or (reference is not None and store.find(str(reference)) is None):
        raise ModelNotFound(f"{name[:200]} is not in the model cache: headrace pull {name[:200]}")
    model = store.open_key(key_named(name, settings, store))
    with model.lease():
        yield contents_of_stored(model)


def _reference_named(name: str, settings: Settings) -> ModelReference | None:
    """None: it may be a key."""
    if _is_gguf(Path(name)):
        return ModelReference(Scheme.FILE, str(Path(name).absolute()))
    if any(name in (model.id, *model.aliases) for model in model_settings(settings)):
        return parse_reference(settings_named(name, settings).source or "")
    try:
        return parse_reference(name)
    except ModelError:
        return None


def _is_gguf(path: Path) -> bool:
    return path.name.endswith(GGUF_SUFFIX) and path.is_file()


def reporter(display: ProgressDisplay, *, clock: Callable[[], float] = time.monotonic) -> Reporter:
    """Shows the reading and then the sending."""
    meters = [RateMeter(clock=clock), RateMeter(clock=clock)]

    def show(meter: RateMeter, done: int, total: int) -> None:
        rate = meter.update(done)
        display.show(done, total, rate=rate, eta_seconds=(total - done) / rate if rate > 0 else None)

    return Reporter(
        on_hashed=lambda done, total: show(meters[0], done, total),
        on_sent=lambda done, total: show(meters[1], done, total),
    )


def pinned_reference(pushed: Pushed, destination: OciLocation) -> str:
    """The tag, and the digest that names this content for ever."""
    return f"oci://{destination.registry}/{destination.repository}:{destination.tag}@{pushed.digest}"


def summary(pushed: Pushed, destination: OciLocation) -> str:
    """Two lines: what happened, and the reference by itself."""
    sent = pushed.blob_bytes.get(Outcome.UPLOADED, 0)
    how = f"{size_text(sent)} sent in {duration_text(pushed.seconds)}" if sent else "nothing had to be sent"
    total = f"{size_text(pushed.total_bytes)} in {pushed.num_files} files"
    index = f"seek index {size_text(pushed.index_bytes)}" if pushed.index_bytes else "no seek index"
    return f"pushed {total}, {index}, trust {pushed.trust.value}, {how}\n{pinned_reference(pushed, destination)}"


def document(pushed: Pushed, command: PushCommand, destination: OciLocation) -> dict[str, object]:
    """What `--json` prints."""
    blob_bytes = pushed.blob_bytes
    return {
        "source": command.source,
        "reference": pinned_reference(pushed, destination),
        "digest": str(pushed.digest),
        "format": command.form.value,
        "trust": pushed.trust.value,
        "num_files": pushed.num_files,
        "total_bytes": pushed.total_bytes,
        "index_bytes": pushed.index_bytes,
        "sent_bytes": blob_bytes.get(Outcome.UPLOADED, 0),
        "mounted_bytes": blob_bytes.get(Outcome.MOUNTED, 0),
        "present_bytes": blob_bytes.get(Outcome.PRESENT, 0),
        "seconds": round(pushed.seconds, 3),
    }
