"""`headrace pull`: models into the cache, one after the other, each by a fetch in a child process.

Resuming is the store's: what has arrived stays, whatever ends the command, and is not fetched again.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

import typer

from headrace_models import ModelError, Trust
from headrace_models.fetch.client import FetchProcess
from headrace_models.fetch.events import Completed, Failed, FetchEvent, Indexed, Noted, Progress, Started
from headrace_models.fetch.request import FetchRequest
from headrace_models.store.model_store import ModelStore
from headrace_server.catalog import fetch_request
from headrace_server.cli.model_names import settings_named
from headrace_server.cli.progress_display import ProgressDisplay, duration_text, open_display, size_text
from headrace_server.engine.supply_fetch import Fetch, events_of
from headrace_server.settings.loading import load_settings

EXIT_FAILED = 1


@dataclass(frozen=True, slots=True)
class PullOptions:
    """What the command line says beside the models; None: as configured."""

    max_connections: int | None = None
    bytes_per_second: int | None = None
    require_trust: Trust | None = None
    pin: bool = False
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class Pulled:
    """How one pull ended. `indexed` and `completed` are None where it did not come so far; `problem` says why."""

    reference: str
    indexed: Indexed | None = None
    completed: Completed | None = None
    problem: str = ""


class Interrupted(Exception):
    """The user has had enough; carries how far it was."""

    def __init__(self, pulled: Pulled) -> None:
        super().__init__(pulled.reference)
        self.pulled = pulled


def pull_models(names: Sequence[str], config: Path | None, options: PullOptions) -> int:
    """Pull every model, also after one that failed. Returns the exit code.

    Raises:
        UsageError: a name is neither a configured model nor a reference; then nothing is pulled.
    """
    settings = load_settings(config=config)
    requests = [_limited(fetch_request(settings_named(name, settings), settings.cache), options) for name in names]
    try:
        ended = [_pull_and_tell(request, options) for request in requests]
    except Interrupted as interrupted:
        _complain(f"interrupted; {kept(interrupted.pulled, _cache_dir(requests))}")
        return EXIT_FAILED
    return 0 if all(ended) else EXIT_FAILED


def _limited(request: FetchRequest, options: PullOptions) -> FetchRequest:
    return replace(
        request,
        max_connections=options.max_connections or request.max_connections,
        bytes_per_second=options.bytes_per_second or request.bytes_per_second,
        require_trust=options.require_trust or request.require_trust,
    )


def _cache_dir(requests: Sequence[FetchRequest]) -> Path:
    return requests[0].cache_dir


def _pull_and_tell(request: FetchRequest, options: PullOptions) -> bool:
    with open_display(request.reference) as display:
        pulled = pull(request, display, pin=options.pin)
    if options.as_json:
        typer.echo(json.dumps(_document(pulled, options)))
    elif pulled.completed is not None:
        typer.echo(summary(pulled))
        sys.stdout.flush()
    if pulled.problem:
        hint = f"; {kept(pulled, request.cache_dir)}" if pulled.indexed else ""
        _complain(f"{request.reference}: {pulled.problem}{hint}")
    return pulled.completed is not None


def pull(
    request: FetchRequest,
    display: ProgressDisplay,
    *,
    pin: bool = False,
    open_fetch: Callable[[FetchRequest], Fetch] = FetchProcess,
) -> Pulled:
    """Fetch one model to its end. Raises Interrupted, with the child gone, on Ctrl-C."""
    pulled = Pulled(request.reference)
    fetch = open_fetch(request)
    try:
        fetch.start()
        with events_of(fetch) as events:
            for event in events:
                pulled = _advanced(pulled, event, display)
                if pin and isinstance(event, Indexed):
                    ModelStore(request.cache_dir).open_key(event.key).set_pin(pinned=True)
    except KeyboardInterrupt:
        raise Interrupted(pulled) from None
    except OSError as error:
        return replace(pulled, problem=f"the fetching process cannot be started: {error.strerror or error}")
    return pulled


def _advanced(pulled: Pulled, event: FetchEvent, display: ProgressDisplay) -> Pulled:
    match event:
        case Indexed():
            return replace(pulled, indexed=event)
        case Completed():
            return replace(pulled, completed=event)
        case Failed(_, message):
            return replace(pulled, problem=message)
        case Progress(present_bytes, total_bytes, _, rate, eta_seconds):
            display.show(present_bytes, total_bytes, rate=rate, eta_seconds=eta_seconds)
        case Noted(message):
            display.note(message)
        case Started():
            pass
        case _:
            assert_never(event)
    return pulled


def summary(pulled: Pulled) -> str:
    """One line for a model that is complete."""
    if pulled.indexed is None or pulled.completed is None:
        return f"{pulled.reference} is not complete"
    completed = pulled.completed
    fetched = f"{size_text(completed.fetched_bytes)} fetched in {duration_text(completed.seconds)}"
    how = fetched if completed.fetched_bytes else "nothing had to be fetched"
    total = size_text(pulled.indexed.total_bytes)
    return f"{pulled.reference} is complete: {total}, trust {completed.trust.value}, {how} ({completed.key})"


def kept(pulled: Pulled, cache_dir: Path) -> str:
    """What a pull that did not end well leaves for the next one, as the store counts it."""
    if pulled.indexed is None:
        return "nothing has been fetched yet"
    try:
        present_bytes = ModelStore(cache_dir).open_key(pulled.indexed.key).status().present_bytes
    except ModelError:
        present_bytes = 0
    total = size_text(pulled.indexed.total_bytes)
    return f"{size_text(present_bytes)} of {total} are kept; pull again to go on"


def _document(pulled: Pulled, options: PullOptions) -> dict[str, object]:
    indexed, completed = pulled.indexed, pulled.completed
    return {
        "reference": pulled.reference,
        "complete": completed is not None,
        "key": indexed.key if indexed else None,
        "revision": indexed.revision if indexed else None,
        "trust": completed.trust.value if completed else None,
        "total_bytes": indexed.total_bytes if indexed else None,
        "fetched_bytes": completed.fetched_bytes if completed else None,
        "seconds": round(completed.seconds, 3) if completed else None,
        "pinned": options.pin and indexed is not None,
        "error": pulled.problem or None,
    }


def _complain(line: str) -> None:
    typer.echo(f"headrace: {line}", err=True)
