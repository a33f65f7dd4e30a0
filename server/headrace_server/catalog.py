"""Settings → the catalog: which models this server offers, what is fetched for each, and how it becomes an engine's
spec.

References are read and local directories inspected before anything starts, so that a typing error is one line and
exit code 2. Everything else about the weights is the supply's: it fetches them, and the spec of an engine on vLLM is
complete once it says what came.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never

from headrace_models import ModelError, ModelFacts, ModelReference, Scheme, Task, inspect, parse_reference
from headrace_models.embedded import embedded_source
from headrace_models.fetch.request import FetchRequest
from headrace_server.domain import ModelId
from headrace_server.engine.base import EngineSpec, StoredWeights
from headrace_server.engine.catalog_entry import CatalogEntry, Prepared
from headrace_server.engine.delivery import Order
from headrace_server.engine.machine_memory import MachineMemory
from headrace_server.engine.memory_estimate import EngineSize, estimated_memory
from headrace_server.engine.model_supply import ModelSupply
from headrace_server.errors import UsageError
from headrace_server.settings.schema import (
    DEFAULT_MODEL,
    CacheSettings,
    EngineArguments,
    EngineKind,
    EngineSettings,
    LoadWhen,
    ModelSettings,
    Settings,
)

# What an embedded model needs beside the defaults: SmolLM2 knows no tools, so the grammar writes its calls.
_EMBEDDED_ARGUMENTS: Mapping[str, Mapping[str, object]] = {
    "smollm2-135m-instruct": {"tool_call_parser": "hermes", "tool_strict_level": "parameter"}
}
# References that say no more than a name may be one.
_NAMING = (Scheme.EMBEDDED, Scheme.HF, Scheme.OCI)
_NEAR = (Scheme.EMBEDDED, Scheme.FILE)
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

    @property
    def is_near(self) -> bool:
        """Whether its weights are on this machine, wherever the cache stands."""
        return self.request is None or parse_reference(self.request.reference).scheme in _NEAR


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


@dataclass(frozen=True, slots=True)
class Supplies:
    """Where weights come from: `near` are those that this machine has, `far` those that are fetched from elsewhere. A
    model on this machine does not wait for the download of another one."""

    near: ModelSupply
    far: ModelSupply

    def of(self, model: PlannedModel) -> ModelSupply:
        """Which one a model is from."""
        return self.near if model.is_near else self.far


def supplies_of(models: Sequence[PlannedModel], on_change: Callable[[ModelId], None]) -> Supplies:
    """The supplies of these models; see `ModelSupply`."""
    near, far = ([model for model in models if model.is_near is is_near] for is_near in (True, False))
    return Supplies(*(ModelSupply(orders_of(part), on_change=on_change) for part in (near, far)))


def catalog_entries(
    models: Sequence[PlannedModel], supplies: Supplies, engine: EngineSettings, memory: MachineMemory
) -> tuple[CatalogEntry, ...]:
    """The entries of the pool; `supplies` have been given `orders_of` the models."""
    return tuple(
        _entry(model, partial(_prepared, model, supplies.of(model), memory), supplies.of(model), engine)
        for model in models
    )


def vllm_spec(
    model: ModelSettings, directory: Path, facts: ModelFacts, store: StoredWeights | None = None
) -> EngineSpec:
    """The spec of an engine on vLLM for a model whose files are in `directory`, the weights perhaps in `store`."""
    reference = parsed_reference(model.source or "")
    embedded = reference.location if reference.scheme is Scheme.EMBEDDED else ""
    arguments = {
        **({"runner": "pooling"} if facts.task is Task.EMBED else {}),
        **_EMBEDDED_ARGUMENTS.get(embedded, {}),
        **model.arguments.model_dump(exclude_none=True, exclude={"cpus"}, mode="json"),
    }
    if model.client_chat_template:
        arguments["trust_request_chat_template"] = True
    return EngineSpec(
        ModelId(model.id),
        "vllm",
        directory,
        arguments=arguments,
        aliases=tuple(map(ModelId, model.aliases)),
        store=store,
        cpus=model.arguments.cpus,
        compile_cache=None if store is None else store.cache_dir / "compiled" / store.key,
    )


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


def _entry(
    planned: PlannedModel,
    prepare: Callable[[], Awaitable[Prepared]],
    supply: ModelSupply,
    engine: EngineSettings,
) -> CatalogEntry:
    model = planned.settings
    return CatalogEntry(
        planned.id,
        tuple(map(ModelId, model.aliases)),
        planned.source,
        prepare,
        weights=partial(supply.weights, planned.id) if planned.request is not None else lambda: None,
        at_startup=model.load is LoadWhen.STARTUP,
        keep_alive_seconds=model.keep_alive_seconds or engine.keep_alive_seconds,
        is_pinned=model.pin,
    )


async def _prepared(planned: PlannedModel, supply: ModelSupply, memory: MachineMemory) -> Prepared:
    """Wait until an engine may start on the model, and hold its files until it has ended."""
    model = planned.settings
    if planned.request is None:
        return Prepared(_other_spec(model), model.synthetic.memory_bytes if model.engine is EngineKind.SYNTHETIC else 0)
    opened = await supply.open(planned.id)
    try:
        there = opened.supplied
        spec = vllm_spec(model, there.skeleton, there.facts, StoredWeights(there.cache_dir, there.key))
        size = _engine_size(model.arguments, there.facts, memory)
        return Prepared(spec, estimated_memory(size), opened.failed, opened.close)
    except BaseException:
        opened.close()
        raise


def _engine_size(arguments: EngineArguments, facts: ModelFacts, memory: MachineMemory) -> EngineSize:
    return EngineSize(
        weight_bytes=facts.weight_bytes,
        stored_dtype=facts.dtype,
        dtype=arguments.dtype,
        has_kv_cache=facts.task is not Task.EMBED,
        kv_cache_memory_bytes=arguments.kv_cache_memory_bytes,
        gpu_memory_utilization=arguments.gpu_memory_utilization,
        num_workers=(arguments.tensor_parallel_size or 1) * (arguments.pipeline_parallel_size or 1),
        device_bytes=memory.device_bytes,
    )


def _other_spec(model: ModelSettings) -> EngineSpec:
    """The spec of an engine that loads no weights here."""
    aliases = tuple(map(ModelId, model.aliases))
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
