"""What can go wrong with a model, told apart by what the user should do about it.

    ModelError
    ├── InvalidReference            the text is not a model reference
    │   └── UnsupportedReference        it is, but of a kind that is not fetched yet
    ├── ModelNotFound               no such embedded model, its wheel is missing, or no such directory
    ├── UnsafeModel                 the directory is refused: it could run code, or it is not what it says
    ├── PreparationFailed           making the directory failed: disk full, converter died, no permission
    └── DigestMismatch              bytes differ from their pinned digest

Every message is one line for a user: it says what is wrong and, where there is a way out, what to do.
"""


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
