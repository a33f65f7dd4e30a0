"""Settings → the catalog: which models this server offers, what is fetched for each, and how it becomes an engine's
spec.

References are read and local directories inspected before anything starts, so that a typing error is one line and
exit code 2. Everything else about the weights is the supply's: it fetches them, and the spec of an engine on vLLM is
complete once it says what came.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from headrace_models import ModelError, ModelFacts, ModelReference, Scheme, Task, inspect, parse_reference
from headrace_models.embedded import embedded_source
from headrace_models.fetch.request import FetchRequest
from headrace_server.domain import ModelId
from headrace_server.engine.base import EngineSpec, StoredWeights
from headrace_server.engine.delivery import Order
from headrace_server.engine.model_supply import ModelSupply
from headrace_server.engine.pool import CatalogEntry
from headrace_server.errors import UsageError
from headrace_server.settings.schema import DEFAULT_MODEL, CacheSettings, EngineKind, ModelSettings, Settings

# What an embedded model needs beside the defaults: SmolLM2 knows no tools, so the grammar writes its calls.
_EMBEDDED_ARGUMENTS: Mapping[str, Mapping[str, object]] = {
    "smollm2-135m-instruct": {"tool_call_parser": "hermes", "tool_strict_level": "parameter"}
}
# References that say no more than a name may be one.
_NAMING = (Scheme.EMBEDDED, Scheme.HF, Scheme.OCI)
_MODEL_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model of the catalog, checked as far as that is quick. `request`: what is to be fetched; None: nothing."""

    settings: ModelSettings
    source: str
    request: FetchRequest | None = None

    @property
    def id(self) -> ModelId:
        """The name that clients use."""
        return ModelId(self.settings.id)


def model_settings(settings: Settings) -> tuple[ModelSettings, ...]:
    """The configured models; without any, the embedded chat model."""
    return settings.models or (model_settings_of(DEFAULT_MODEL),)


def model_settings_of(reference: str) -> ModelSettings:
    """Settings of a model that was named by its reference alone; a reference that is a name too is an alias.

    Raises:
        UsageError: the reference cannot be read.
    """
    parsed = parsed_reference(reference)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", parsed.display_name).strip("-._")[:_MODEL_NAME_CHARS] or "model"
    is_name = parsed.scheme in _NAMING and len(str(parsed)) <= _MODEL_NAME_CHARS
    return ModelSettings(id=name, source=str(parsed), aliases=(str(parsed),) if is_name else ())


def parsed_reference(reference: str) -> ModelReference:
    """Read a model reference.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return parse_reference(reference)
    except ModelError as error:
        raise UsageError(f"model {reference[:100]!r}: {error}") from error


def plan_models(settings: Settings) -> tuple[PlannedModel, ...]:
    """All models of the catalog, in its order; nothing is fetched or started.

    Raises:
        UsageError: a reference that cannot be read, an embedded model that there is not, a directory that is refused.
    """
    return tuple(_planned(model, settings.cache) for model in model_settings(settings))


def fetch_request(model: ModelSettings, cache: CacheSettings) -> FetchRequest:
    """How a model's weights are fetched.

    Raises:
        UsageError: the reference cannot be read.
    """
    return FetchRequest(
        reference=str(parsed_reference(model.source or "")),
        cache_dir=cache_directory(cache),
        max_bytes=cache.max_bytes,
        max_connections=cache.max_connections,
        bytes_per_second=cache.bytes_per_second,
        require_trust=model.require_trust,
        insecure_hosts=cache.insecure_hosts,
    )


def cache_directory(cache: CacheSettings) -> Path:
    """Where models are kept, absolute: processes with other working directories read there."""
    return cache.dir.expanduser().absolute()


def orders_of(models: Sequence[PlannedModel]) -> tuple[Order, ...]:
    """What is to be supplied, in the catalog's order."""
    return tuple(Order(model.id, model.request) for model in models if model.request is not None)


def catalog_entries(models: Sequence[PlannedModel], supply: ModelSupply) -> tuple[CatalogEntry, ...]:
    """The entries of the pool; `supply` has been given `orders_of(models)`."""
    return tuple(_entry(model, supply) for model in models)


def vllm_spec(
    model: ModelSettings, directory: Path, facts: ModelFacts, store: StoredWeights | None = None
) -> EngineSpec:
    """The spec of an engine on vLLM for a model whose files are in `directory`, the weights perhaps in `store`."""
    reference = parsed_reference(model.source or "")
    embedded = reference.location if reference.scheme is Scheme.EMBEDDED else ""
    arguments = {
        **({"runner": "pooling"} if facts.task is Task.EMBED else {}),
        **_EMBEDDED_ARGUMENTS.get(embedded, {}),
        **model.arguments.model_dump(exclude_none=True, mode="json"),
    }
    if model.client_chat_template:
        arguments["trust_request_chat_template"] = True
    aliases = tuple(map(ModelId, model.aliases))
    return EngineSpec(ModelId(model.id), "vllm", directory, None, arguments, aliases, store=store)


def _planned(model: ModelSettings, cache: CacheSettings) -> PlannedModel:
    match model.engine:
        case EngineKind.VLLM:
            request = fetch_request(model, cache)
            _check(parsed_reference(request.reference))
            return PlannedModel(model, request.reference, request)
        case EngineKind.UPSTREAM:
            return PlannedModel(model, model.upstream.url or "")
        case EngineKind.SYNTHETIC:
            return PlannedModel(model, "synthetic")
        case _:
            assert_never(model.engine)


def _entry(planned: PlannedModel, supply: ModelSupply) -> CatalogEntry:
    model, name = planned.settings, planned.id
    aliases = tuple(map(ModelId, model.aliases))

    async def prepared() -> EngineSpec:
        if planned.request is None:
            return _other_spec(model, aliases)
        supplied = await supply.indexed(name)
        store = StoredWeights(supplied.cache_dir, supplied.key)
        return vllm_spec(model, supplied.skeleton, supplied.facts, store)

    if planned.request is None:
        return CatalogEntry(name, aliases, planned.source, prepared)
    return CatalogEntry(
        name, aliases, planned.source, prepared, lambda: supply.weights(name), lambda: supply.failure(name)
    )


def _other_spec(model: ModelSettings, aliases: tuple[ModelId, ...]) -> EngineSpec:
    """The spec of an engine that loads no weights here."""
    if model.engine is EngineKind.SYNTHETIC:
        arguments = model.synthetic.model_dump(exclude_none=True)
        return EngineSpec(ModelId(model.id), "synthetic", None, None, arguments, aliases)
    key = model.upstream.api_key
    arguments = model.upstream.model_dump(exclude={"url", "api_key"}, exclude_none=True)
    secret = {"api_key": key.get_secret_value()} if key else {}
    return EngineSpec(ModelId(model.id), "upstream", None, model.upstream.url, {**arguments, **secret}, aliases)


def _check(reference: ModelReference) -> None:
    """Whatever can be refused at once."""
    try:
        if reference.scheme is Scheme.EMBEDDED:
            embedded_source(reference.location)
        elif reference.scheme is Scheme.FILE:
            inspect(Path(reference.location))
    except ModelError as error:
        raise UsageError(f"model {reference}: {error}") from error
