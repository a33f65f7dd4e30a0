"""Files of an image on this machine, whether they lie in a directory or in an archive."""

from pathlib import Path
from typing import Protocol

from headrace_server.image.errors import ImageUnreadable


class Files(Protocol):
    """Files by their path below the image's root, with forward slashes."""

    def size_of(self, name: str) -> int | None:
        """How large; None where there is no such file."""
        ...

    def read(self, name: str, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end` (not included), fewer at the end of the file; b"" where there is none."""
        ...


class DirectoryFiles:
    """See Files. Names come from constants and digests, so none leads out of the directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size_of(self, name: str) -> int | None:
        """See Files."""
        try:
            return (self._root / name).stat().st_size if (self._root / name).is_file() else None
        except OSError as error:
            raise _unreadable(self._root / name, error) from error

    def read(self, name: str, begin: int, end: int) -> bytes:
        """See Files."""
        try:
            with (self._root / name).open("rb") as file:
                file.seek(begin)
                return file.read(end - begin)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise _unreadable(self._root / name, error) from error


def whole(files: Files, name: str, *, max_bytes: int) -> bytes:
    """A small file. Raises ImageUnreadable where there is none, or more of it."""
    size_bytes = files.size_of(name)
    if size_bytes is None:
        raise ImageUnreadable(f"{name} is missing")
    if size_bytes > max_bytes:
        raise ImageUnreadable(f"{name} has {size_bytes} bytes: too many to be one of an image's documents")
    return files.read(name, 0, size_bytes)


def _unreadable(path: Path, error: OSError) -> ImageUnreadable:
    return ImageUnreadable(f"{path} cannot be read: {error.strerror or error}")
