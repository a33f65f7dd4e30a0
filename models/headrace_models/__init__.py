"""Models from anywhere, as tensors and as directories that an engine can load: references, sources, the cache.

Usable on its own: no server, no engine, and torch only in a child process that converts GGUF. The names below are the
public interface; each is imported from its module when it is first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace_models.catalog import CatalogEntry, CatalogState, list_embedded, list_prepared
    from headrace_models.digest import Sha256, sha256_of_file
    from headrace_models.errors import (
        DigestMismatch,
        InvalidReference,
        ModelError,
        ModelNotFound,
        PreparationFailed,
        SourceError,
        StoreError,
        UnsafeModel,
        UnsupportedReference,
    )
    from headrace_models.fetch.client import FetchProcess
    from headrace_models.fetch.request import FetchRequest
    from headrace_models.inspection import ModelFacts, inspect
    from headrace_models.preparation import PreparedModel, prepare
    from headrace_models.reading.open_model import OpenModel, open_model, open_request
    from headrace_models.reading.seekable_file import SeekableFile
    from headrace_models.reading.tensors import TensorBytes
    from headrace_models.reference import ModelReference, Scheme, parse_reference
    from headrace_models.seek_index import SeekIndex
    from headrace_models.store.model_store import ModelStore
    from headrace_models.store.stored_model import StoredModel
    from headrace_models.task import Task
    from headrace_models.trust import Trust

_MODULES = {
    "catalog": ("CatalogEntry", "CatalogState", "list_embedded", "list_prepared"),
    "digest": ("Sha256", "sha256_of_file"),
    "errors": (
        "DigestMismatch",
        "InvalidReference",
        "ModelError",
        "ModelNotFound",
        "PreparationFailed",
        "SourceError",
        "StoreError",
        "UnsafeModel",
        "UnsupportedReference",
    ),
    "fetch.client": ("FetchProcess",),
    "fetch.request": ("FetchRequest",),
    "inspection": ("ModelFacts", "inspect"),
    "preparation": ("PreparedModel", "prepare"),
    "reading.open_model": ("OpenModel", "open_model", "open_request"),
    "reading.seekable_file": ("SeekableFile",),
    "reading.tensors": ("TensorBytes",),
    "reference": ("ModelReference", "Scheme", "parse_reference"),
    "seek_index": ("SeekIndex",),
    "store.model_store": ("ModelStore",),
    "store.stored_model": ("StoredModel",),
    "task": ("Task",),
    "trust": ("Trust",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CatalogEntry",
    "CatalogState",
    "DigestMismatch",
    "FetchProcess",
    "FetchRequest",
    "InvalidReference",
    "ModelError",
    "ModelFacts",
    "ModelNotFound",
    "ModelReference",
    "ModelStore",
    "OpenModel",
    "PreparationFailed",
    "PreparedModel",
    "Scheme",
    "SeekIndex",
    "SeekableFile",
    "Sha256",
    "SourceError",
    "StoreError",
    "StoredModel",
    "Task",
    "TensorBytes",
    "Trust",
    "UnsafeModel",
    "UnsupportedReference",
    "inspect",
    "list_embedded",
    "list_prepared",
    "open_model",
    "open_request",
    "parse_reference",
    "prepare",
    "sha256_of_file",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
