"""What can be had without asking anyone: the embedded models, how far each is, and what the cache holds of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from headrace_models.embedded import EMBEDDED_MODELS, EmbeddedModel, find_sources
from headrace_models.preparation import embedded_directory, is_prepared
from headrace_models.reference import ModelReference, Scheme
from headrace_models.task import Task


class CatalogState(StrEnum):
    """How far an embedded model is. PREPARED wins: a prepared model no longer needs its wheel."""

    MISSING = "missing wheel"
    AVAILABLE = "available"
    PREPARED = "prepared"


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One line of `headrace ls`. `size_bytes` is about what the prepared directory takes on disk."""

    name: str
    reference: ModelReference
    task: Task
    size_bytes: int
    state: CatalogState


def list_embedded(
    cache_dir: Path | None = None, *, models: Sequence[EmbeddedModel] = EMBEDDED_MODELS
) -> tuple[CatalogEntry, ...]:
    """All embedded models; without `cache_dir` none counts as prepared. Reads manifests and sizes only."""
    return tuple(_entry(model, cache_dir) for model in models)


def list_prepared(cache_dir: Path, *, models: Sequence[EmbeddedModel] = EMBEDDED_MODELS) -> tuple[CatalogEntry, ...]:
    """The embedded models that are ready in `cache_dir`."""
    return tuple(entry for entry in list_embedded(cache_dir, models=models) if entry.state is CatalogState.PREPARED)


def _entry(model: EmbeddedModel, cache_dir: Path | None) -> CatalogEntry:
    reference = ModelReference(Scheme.EMBEDDED, model.name)
    return CatalogEntry(model.name, reference, model.task, model.prepared_bytes, _state(model, cache_dir))


def _state(model: EmbeddedModel, cache_dir: Path | None) -> CatalogState:
    if cache_dir is not None and is_prepared(embedded_directory(model, cache_dir)):
        return CatalogState.PREPARED
    return CatalogState.MISSING if find_sources(model) is None else CatalogState.AVAILABLE
