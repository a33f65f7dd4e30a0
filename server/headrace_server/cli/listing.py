"""`headrace ls` and `headrace version`. Looks at the configuration, the embedded models and the cache; asks nobody."""

import json as json_module
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import typer

from headrace_models import ModelError, ModelNotFound, ModelReference, Scheme, Trust, inspect, list_embedded
from headrace_models.catalog import CatalogState
from headrace_server import __version__
from headrace_server.api.health import vllm_version
from headrace_server.catalog import cache_directory, model_settings, parsed_reference
from headrace_server.cli.model_names import open_store
from headrace_server.cli.progress_display import percent, size_text
from headrace_server.cli.text_table import table_lines
from headrace_server.domain import CachedModel
from headrace_server.engine.model_storage import models_of
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import EngineKind, ModelSettings, Settings

_COLUMNS = ("ID", "SOURCE", "STATE", "SIZE", "TRUST", "LAST USED/PIN")
_EMBEDDED_STATES: Mapping[CatalogState, str] = {
    CatalogState.MISSING: "missing wheel",
    CatalogState.AVAILABLE: "cold",
    CatalogState.PREPARED: "complete",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A model as `ls` shows it; what is unknown or means nothing for it is None. `last_used` is RFC 3339, UTC."""

    id: str | None
    aliases: tuple[str, ...]
    engine: str | None
    source: str
    state: str | None
    key: str | None = None
    revision: str | None = None
    total_bytes: int | None = None
    present_bytes: int | None = None
    allocated_bytes: int | None = None
    trust: str | None = None
    last_used: str | None = None
    pinned: bool = False
    leased: bool = False
    fetching: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """What is known without asking anyone of a model that the store does not have."""

    state: str
    total_bytes: int | None = None
    trust: Trust | None = None
    problem: str | None = None


def print_models(config: Path | None, *, as_json: bool) -> None:
    """Every model that this configuration, this installation or this cache has."""
    rows = list(_rows(load_settings(config=config)))
    if as_json:
        typer.echo(json_module.dumps([asdict(row) for row in rows], indent=2))
        return
    for line in table_lines([_COLUMNS, *map(_cells, rows)]):
        typer.echo(line)


def _rows(settings: Settings) -> Iterator[Row]:
    """Configured models, then embedded ones, then what else the cache holds."""
    store = open_store(settings)
    cached = {model.key: model for model in models_of(store)} if store else {}
    embedded = {str(model.reference): model for model in list_embedded(cache_directory(settings.cache))}

    def row(model: ModelSettings | None, reference: str) -> Row:
        found = store.find(reference) if store else None
        stored = cached.pop(found.key, None) if found else None
        if stored is not None:
            return _stored_row(model, stored)
        prepared = embedded.get(reference)
        if prepared is not None:
            size = prepared.size_bytes if prepared.state is CatalogState.PREPARED else None
            return _row(model, reference, _Place(_EMBEDDED_STATES[prepared.state], size, Trust.FILE))
        return _row(model, reference, _look(parsed_reference(reference)))

    configured = model_settings(settings)
    references = [str(parsed_reference(model.source)) if model.source else "" for model in configured]
    for model, reference in zip(configured, references, strict=True):
        yield row(model, reference) if model.engine is EngineKind.VLLM else _engine_row(model)
    yield from [row(None, reference) for reference in embedded if reference not in references]
    yield from [_stored_row(None, model) for model in cached.values()]
    for key, why in store.damaged() if store else ():
        yield Row(None, (), None, key, "damaged", key=key, problem=why)


def _engine_row(model: ModelSettings) -> Row:
    return Row(model.id, model.aliases, model.engine.value, model.upstream.url or model.engine.value, None)


def _row(model: ModelSettings | None, reference: str, place: _Place) -> Row:
    name, aliases, engine = (model.id, model.aliases, model.engine.value) if model else (None, (), None)
    present_bytes = place.total_bytes if place.state == "complete" else None
    return Row(
        name,
        aliases,
        engine,
        reference,
        place.state,
        total_bytes=place.total_bytes,
        present_bytes=present_bytes,
        trust=place.trust.value if place.trust else None,
        problem=place.problem,
    )


def _stored_row(model: ModelSettings | None, stored: CachedModel) -> Row:
    name, aliases, engine = (model.id, model.aliases, model.engine.value) if model else (None, (), None)
    return Row(
        name,
        aliases,
        engine,
        stored.reference,
        state_text(stored),
        key=stored.key,
        revision=stored.revision,
        total_bytes=stored.total_bytes,
        present_bytes=stored.present_bytes,
        allocated_bytes=stored.allocated_bytes,
        trust=stored.trust.value,
        last_used=datetime.fromtimestamp(stored.last_used, UTC).isoformat(timespec="seconds"),
        pinned=stored.is_pinned,
        leased=stored.is_leased,
        fetching=stored.is_fetching,
    )


def state_text(stored: CachedModel) -> str:
    """How much of it is here, in a word or two."""
    if stored.is_complete:
        return "complete"
    done = percent(stored.present_bytes, stored.total_bytes)
    return f"partial {min(done, 99)} %" if stored.present_bytes else "cold"


def _look(reference: ModelReference) -> _Place:
    """A directory is here or it is not; what is elsewhere is cold."""
    if reference.scheme is not Scheme.FILE:
        return _Place("cold")
    try:
        return _Place("complete", inspect(Path(reference.location)).weight_bytes, Trust.NONE)
    except ModelNotFound as error:
        return _Place("missing", problem=str(error))
    except ModelError as error:
        return _Place("refused", problem=str(error))


def _cells(row: Row) -> tuple[str, ...]:
    used = datetime.fromisoformat(row.last_used).astimezone().strftime("%Y-%m-%d %H:%M") if row.last_used else ""
    pin = "pinned" if row.pinned else ""
    size = "" if row.total_bytes is None else size_text(row.total_bytes)
    cells = (row.id, row.source, row.state, size, row.trust, " ".join(filter(None, (used, pin))))
    return tuple(cell or "-" for cell in cells)


def print_version(*, as_json: bool) -> None:
    """Versions of what matters."""
    versions = {"headrace": __version__, "python": platform.python_version(), "vllm": vllm_version()}
    if as_json:
        typer.echo(json_module.dumps(versions))
        return
    for name, version in versions.items():
        typer.echo(f"{name} {version or 'not installed'}")
