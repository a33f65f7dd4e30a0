"""What each reference resolved to last: a name such as `hf://org/model` stands for another revision tomorrow.

One small file per reference in `refs/`, replaced in one step under `refs/.lock`, which is held for one write and under
which nothing else is waited for. An entry is a hint: what it names may have been removed.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from headrace_models.errors import StoreDamaged
from headrace_models.store.files import read_record, replace_file
from headrace_models.store.locks import FileLock, Hold, wait_lock
from headrace_models.store.records import Resolution


class References:
    """The entries in one directory. Methods raise OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, reference: str) -> Resolution | None:
        """The last resolution, None where there is none that can be read."""
        found = _read(self._path(reference))
        return found if found is not None and found.reference == reference else None

    def remember(self, resolution: Resolution) -> None:
        """Replace what `resolution.reference` stood for."""
        with self._alone():
            replace_file(self._path(resolution.reference), resolution.to_json())

    def drop(self, is_gone: Callable[[str], bool]) -> None:
        """Forget the entries of keys that are gone, and entries that cannot be read."""
        with self._alone():
            for path in self._entries():
                found = _read(path)
                if found is None or is_gone(found.key):
                    path.unlink(missing_ok=True)

    def _entries(self) -> Iterator[Path]:
        return self._directory.glob("*.json")

    def _path(self, reference: str) -> Path:
        digest = hashlib.sha256(reference.encode("utf-8", errors="surrogatepass")).hexdigest()
        return self._directory / f"{digest[:32]}.json"

    def _alone(self) -> FileLock:
        return wait_lock(self._directory / ".lock", Hold.EXCLUSIVE, while_waiting=lambda: None)


def _read(path: Path) -> Resolution | None:
    try:
        data = read_record(path)
        return None if data is None else Resolution.from_json(data)
    except StoreDamaged:
        return None
