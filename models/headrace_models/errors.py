"""What can go wrong with a model, told apart by what the caller should do about it.

    ModelError
    ├── InvalidReference            the text is not a model reference
    │   └── UnsupportedReference        it is, but of a kind that is not fetched
    ├── ModelNotFound               nothing is where the reference points: no model, file, tag, bucket or directory
    ├── UnsafeModel                 the model is refused: it could run code, or it is not what it says
    ├── PreparationFailed           making a directory failed: disk full, converter died, no permission
    ├── DigestMismatch              bytes differ from their digest
    ├── SourceError                 where the model comes from
    │   ├── SourceUnavailable           try again: no connection, stalled, 429, 5xx
    │   ├── SourceDenied                do not: 401 and 403, after every credential that there was
    │   ├── SourceChanged               a file is no longer the one that the index was built from
    │   └── SourceUnusable              it answers, but not as its protocol says
    ├── StoreError                  where models are kept
    │   ├── NoSpace                     the disk or the byte budget is full, and nothing can be evicted
    │   ├── ModelBusy                   somebody reads or fetches it
    │   ├── StoreUnusable               the file system cannot lock, or refuses what is needed
    │   └── StoreDamaged                what is kept is not what was written
    └── FetchFailed                 nobody brings the bytes: the fetching process ended without them

Every message is one line for a user: it says what is wrong and, where there is a way out, what to do.
"""

import errno


class ModelError(Exception):
    """Root of everything that this package raises on purpose; `str()` is the line to show."""


class InvalidReference(ModelError):
    """The text cannot be read as a model reference."""


class UnsupportedReference(InvalidReference):
    """The reference is well formed, but its scheme cannot be fetched by this version."""


class ModelNotFound(ModelError):
    """Nothing is where the reference points."""


class UnsafeModel(ModelError):
    """A model directory is refused before an engine sees it."""


class PreparationFailed(ModelError):
    """A model directory could not be made; nothing half-made is left behind."""


class DigestMismatch(ModelError):
    """A file's content differs from the digest that it was pinned to."""


class SourceError(ModelError):
    """The place that a model comes from did not give what was asked for."""


class SourceUnavailable(SourceError):
    """The source may answer later. `retry_after_seconds`: not before, if it said so."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class SourceDenied(SourceError):
    """The source wants other credentials."""


class SourceChanged(SourceError):
    """A file's validator differs from the pinned one: bytes of two versions must never be mixed."""


class SourceUnusable(SourceError):
    """The source answers, but not as its protocol says."""


class StoreError(ModelError):
    """The model cache on disk cannot do what was asked."""


class NoSpace(StoreError):
    """The disk or the byte budget is full, and nothing that may be evicted is left."""


class ModelBusy(StoreError):
    """Somebody holds a lease or the fetch lock of the model."""


class StoreUnusable(StoreError):
    """The file system cannot lock, or refuses what the store needs."""


class StoreDamaged(StoreError):
    """What is kept is not what was written."""


class FetchFailed(ModelError):
    """The bytes do not come: the process that fetched them ended, and nobody took over."""


def is_out_of_space(error: OSError) -> bool:
    """Whether the disk, or the user's share of it, is full."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}
