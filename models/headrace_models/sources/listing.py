"""A model's files as a whole: how many there may be, that no two claim one place, and what revision they amount to.

Pure. The paths themselves are checked one by one, by `file_path`, where they come in.
"""

import hashlib
import json
from collections.abc import Iterable

from headrace_models.errors import UnsafeModel
from headrace_models.sources.base import SourceFile
from headrace_models.sources.file_path import check_distinct

MAX_FILES = 20_000


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
