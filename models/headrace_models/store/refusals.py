"""What a file system refuses, as the store's errors: one line each, with what to do."""

import contextlib
from collections.abc import Iterator

from headrace_models.errors import NoSpace, StoreDamaged, StoreUnusable, is_out_of_space


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Raise OSErrors of the body as a StoreError; `doing` ends the sentence "cannot ...".

    NoSpace for a full disk or quota, StoreDamaged for a file that is not there, StoreUnusable for all else.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise StoreDamaged(f"cannot {doing}: {error.filename} is missing") from error
    except OSError as error:
        if is_out_of_space(error):
            raise NoSpace(
                f"cannot {doing}: the disk is full (remove a model with headrace rm, or free some)"
            ) from error
        raise StoreUnusable(f"cannot {doing}: {error.strerror or error}") from error
