"""Embedded models in the cache: the store keeps their index, and beside it lies the directory that was made from the
wheel. Who removes or verifies such a model means that directory too.
"""

from pathlib import Path

from headrace_models import InvalidReference, ModelError, ModelNotFound, Scheme, parse_reference
from headrace_models.embedded import embedded_source
from headrace_models.manifest import check_digests, read_manifest
from headrace_models.preparation import embedded_directory
from headrace_models.publication import exclusive_lock, temporary_sibling
from headrace_models.store.space import allocated_bytes


def prepared_directory(reference: str, cache_dir: Path) -> Path | None:
    """The directory of an embedded model; None for other models, and where none has been made."""
    try:
        parsed = parse_reference(reference)
        if parsed.scheme is not Scheme.EMBEDDED:
            return None
        directory = embedded_directory(embedded_source(parsed.location), cache_dir)
    except (InvalidReference, ModelNotFound):
        return None
    return directory if directory.is_dir() else None


def remove_prepared(directory: Path, name: str) -> int:
    """Remove the directory of the embedded model `name`; returns the bytes that it took. Raises OSError.

    It is made again from its wheel when it is wanted again.
    """
    lock = directory.with_name(f".{name}.lock")
    with exclusive_lock(lock, while_waiting=lambda: None), temporary_sibling(directory, name=name) as trash:
        freed_bytes = allocated_bytes(directory)
        directory.rename(trash / "removed")
    return freed_bytes


def problem_of(directory: Path) -> str | None:
    """What differs from what was published there, every byte looked at; None: nothing does."""
    try:
        check_digests(directory, read_manifest(directory).files)
    except ModelError as error:
        return str(error)
    except OSError as error:
        return f"{directory} cannot be read: {error.strerror or error}"
    return None
