"""Settings → the catalog: which models this server offers and how each becomes an engine's spec.

References are read and local directories inspected before anything starts, so that a typing error is one line and
exit code 2; embedded models are prepared later, by the pool, in a thread.
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from headrace_models import ModelError, ModelReference, PreparedModel, Scheme, Task, inspect, parse_reference, prepare
from headrace_models.embedded import embedded_source
from headrace_server.domain import ModelId
from headrace_server.engine.base import EngineSpec
from headrace_server.engine.pool import CatalogEntry
from headrace_server.errors import EngineFault, UsageError
from headrace_server.settings.schema import DEFAULT_MODEL, EngineKind, ModelSettings, Settings

logger = logging.getLogger(__name__)

# What an embedded model needs beside the defaults: SmolLM2 knows no tools, so the grammar writes its calls.
_EMBEDDED_ARGUMENTS: Mapping[str, Mapping[str, object]] = {
    "smollm2-135m-instruct": {"tool_call_parser": "hermes", "tool_strict_level": "parameter"}
}


def model_settings(settings: Settings) -> tuple[ModelSettings, ...]:
    """The configured models; without any, the embedded chat model."""
    return settings.models or (model_settings_of(DEFAULT_MODEL),)


def model_settings_of(reference: str) -> ModelSettings:
    """Settings of a model that was named by its reference alone; the reference is an alias.

    Raises:
        UsageError: the reference cannot be read.
    """
    parsed = _parse(reference)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", parsed.display_name).strip("-.") or "model"
    aliases = (str(parsed),) if parsed.scheme is Scheme.EMBEDDED else ()
    return ModelSettings(id=name, source=str(parsed), aliases=aliases)


def catalog_entries(settings: Settings) -> tuple[CatalogEntry, ...]:
    """All entries of the catalog, checked as far as that is quick.

    Raises:
        UsageError: a reference that cannot be read, an embedded model that there is not, a directory that is refused.
    """
    cache_dir = settings.cache.dir.expanduser()
    return tuple(_entry(model, cache_dir) for model in model_settings(settings))


def _entry(model: ModelSettings, cache_dir: Path) -> CatalogEntry:
    aliases = tuple(ModelId(alias) for alias in model.aliases)
    match model.engine:
        case EngineKind.VLLM:
            return _vllm_entry(model, aliases, cache_dir)
        case EngineKind.UPSTREAM:
            key = model.upstream.api_key
            arguments = model.upstream.model_dump(exclude={"url", "api_key"}, exclude_none=True)
            secret = {"api_key": key.get_secret_value()} if key else {}
            spec = EngineSpec(ModelId(model.id), "upstream", None, model.upstream.url, {**arguments, **secret}, aliases)
        case EngineKind.SYNTHETIC:
            arguments = model.synthetic.model_dump(exclude_none=True)
            spec = EngineSpec(ModelId(model.id), "synthetic", None, None, arguments, aliases)

    async def prepared() -> EngineSpec:
        return spec

    return CatalogEntry(ModelId(model.id), aliases, spec.url or "synthetic", prepared)


def _vllm_entry(model: ModelSettings, aliases: tuple[ModelId, ...], cache_dir: Path) -> CatalogEntry:
    reference = _parse(model.source or "")
    _check(reference)

    async def prepared() -> EngineSpec:
        return _vllm_spec(model, aliases, await _prepare(reference, cache_dir))

    return CatalogEntry(ModelId(model.id), aliases, str(reference), prepared)


async def _prepare(reference: ModelReference, cache_dir: Path) -> PreparedModel:
    try:
        return await asyncio.to_thread(prepare, reference, cache_dir, on_progress=_log_progress)
    except ModelError as error:
        raise EngineFault(str(error)) from error


def _log_progress(line: str) -> None:
    logger.info("model_preparation", extra={"detail": line})


def _vllm_spec(model: ModelSettings, aliases: tuple[ModelId, ...], prepared: PreparedModel) -> EngineSpec:
    embedded = prepared.reference.location if prepared.reference.scheme is Scheme.EMBEDDED else ""
    arguments = {
        **({"runner": "pooling"} if prepared.facts.task is Task.EMBED else {}),
        **_EMBEDDED_ARGUMENTS.get(embedded, {}),
        **model.arguments.model_dump(exclude_none=True, mode="json"),
    }
    if model.client_chat_template:
        arguments["trust_request_chat_template"] = True
    return EngineSpec(ModelId(model.id), "vllm", prepared.directory, None, arguments, aliases)


def _parse(reference: str) -> ModelReference:
    try:
        return parse_reference(reference)
    except ModelError as error:
        raise UsageError(f"model {reference[:100]!r}: {error}") from error


def _check(reference: ModelReference) -> None:
    """Whatever can be refused at once."""
    try:
        if reference.scheme is Scheme.EMBEDDED:
            embedded_source(reference.location)
        else:
            inspect(Path(reference.location))
    except ModelError as error:
        raise UsageError(f"model {reference}: {error}") from error
