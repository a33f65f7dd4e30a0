"""A model's files as a whole: how many there may be, that no two claim one place, what revision they amount to, and
how a source says all that.

Pure. The paths themselves are checked one by one, by `file_path`, where they come in.
"""

import hashlib
import json
from collections.abc import Iterable

from headrace_models.errors import UnsafeModel
from headrace_models.sources.base import Proof, SourceFile, proof_of
from headrace_models.sources.file_path import check_distinct

MAX_FILES = 20_000
MAX_CONNECTIONS = 8


def checked_listing(files: Iterable[SourceFile]) -> tuple[SourceFile, ...]:
    """`files` in the order of their paths; raises UnsafeModel for too many and for two in one place.

    Takes no more than MAX_FILES + 1 of them, so an endless listing ends here.
    """
    listed: list[SourceFile] = []
    for file in files:
        listed.append(file)
        if len(listed) > MAX_FILES:
            raise UnsafeModel(f"the model has more than {MAX_FILES} files")
    check_distinct(file.path for file in listed)
    return tuple(sorted(listed, key=lambda file: file.path))


def content_revision(files: Iterable[SourceFile]) -> str:
    """`sha256:...` over paths, sizes, validators and digests: the same only if all of these are, in any order."""
    facts = sorted((file.path, file.size_bytes, file.validator or "", str(file.digest or "")) for file in files)
    return f"sha256:{hashlib.sha256(json.dumps(facts, separators=(',', ':')).encode()).hexdigest()}"


def proofs_of(files: Iterable[SourceFile]) -> tuple[Proof, ...]:
    """One for each file whose own digest is known."""
    return tuple(proof for file in files if (proof := proof_of(file)))


class ListedSource:
    """The part of `Source` that never changes once it is open; a source adds `read` and `close`."""

    def __init__(
        self,
        files: Iterable[SourceFile],
        *,
        revision: str | None = None,
        proofs: Iterable[Proof] = (),
        pinned_index: str | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """`revision`: None for a digest over the files. Raises what `checked_listing` does."""
        self.files = checked_listing(files)
        self.revision = content_revision(self.files) if revision is None else revision
        self.proofs = tuple(proofs)
        self.pinned_index = pinned_index
        self.max_connections = max_connections
