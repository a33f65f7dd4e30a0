"""Models as directories that an engine can load: references, safety checks, preparation.

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
        UnsafeModel,
        UnsupportedReference,
    )
    from headrace_models.inspection import ModelFacts, inspect
    from headrace_models.preparation import PreparedModel, Trust, prepare
    from headrace_models.reference import ModelReference, Scheme, parse_reference
    from headrace_models.task import Task

_MODULES = {
    "catalog": ("CatalogEntry", "CatalogState", "list_embedded", "list_prepared"),
    "digest": ("Sha256", "sha256_of_file"),
    "errors": (
        "DigestMismatch",
        "InvalidReference",
        "ModelError",
        "ModelNotFound",
        "PreparationFailed",
        "UnsafeModel",
        "UnsupportedReference",
    ),
    "inspection": ("ModelFacts", "inspect"),
    "preparation": ("PreparedModel", "Trust", "prepare"),
    "reference": ("ModelReference", "Scheme", "parse_reference"),
    "task": ("Task",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CatalogEntry",
    "CatalogState",
    "DigestMismatch",
    "InvalidReference",
    "ModelError",
    "ModelFacts",
    "ModelNotFound",
    "ModelReference",
    "PreparationFailed",
    "PreparedModel",
    "Scheme",
    "Sha256",
    "Task",
    "Trust",
    "UnsafeModel",
    "UnsupportedReference",
    "inspect",
    "list_embedded",
    "list_prepared",
    "parse_reference",
    "prepare",
    "sha256_of_file",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
