"""Paths of files inside a model, as strangers write them: in archives, annotations, listings and object keys.

A checked path is relative, with forward slashes, and means one place on every system. One bad path refuses the whole
model: whoever lists `../x` is not to be believed about the rest. Pure.
"""

import re
from collections.abc import Iterable

from headrace_models.errors import UnsafeModel

MAX_PATH_BYTES = 1024
MAX_PART_BYTES = 255

# Controls, line separators, backslashes, and halves of surrogate pairs, which no UTF-8 file name has.
_REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\\\]")


def checked_path(text: str) -> str:
    """`text`, if it may name a file of a model (see SourceFile.path); raises UnsafeModel."""
    if _REFUSED.search(text):
        raise UnsafeModel(f"a file name with a backslash, control characters or no UTF-8: {text[:100]!a}")
    parts = text.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        raise UnsafeModel(f"a file name that leaves the model or is not plain: {text[:100]!a}")
    if len(text.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        raise UnsafeModel(f"a file name longer than {MAX_PATH_BYTES} bytes, {MAX_PART_BYTES} a part: {text[:100]!a}")
    return text


def check_distinct(paths: Iterable[str]) -> None:
    """Raise UnsafeModel where two files have one path, or one has a path below another."""
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        if path in seen:
            raise UnsafeModel(f"two files of the model have one path: {path[:100]!a}")
        seen.add(path)
        folder = path.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    if both := sorted(seen & folders):
        raise UnsafeModel(f"a file of the model has the path of a directory: {both[0][:100]!a}")
