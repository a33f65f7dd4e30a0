"""The files in an uncompressed tar, by name, read where they lie.

Headers are walked once, over the contents by seeking: of an archive of gigabytes a few kilobytes are read, and nothing
is written anywhere. Hard and symbolic links are followed within the archive, as `docker save` uses them for layers that
are there twice. The archive is a stranger's: names mean nothing beyond looking them up.
"""

import posixpath
import tarfile
from dataclasses import dataclass
from pathlib import Path

from headrace_server.image.errors import ImageUnreadable

MAX_MEMBERS = 50_000
_MAX_LINKS = 8


@dataclass(frozen=True, slots=True)
class _Place:
    begin: int
    size_bytes: int


class TarFiles:
    """See `files.Files`. Close it."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, ImageUnreadable."""
        self._file = path.open("rb")
        self._places: dict[str, _Place] = {}
        self._links: dict[str, str] = {}
        try:
            self._walk(path)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Nothing can be read afterwards."""
        self._file.close()

    def size_of(self, name: str) -> int | None:
        """See Files."""
        place = self._found(name)
        return None if place is None else place.size_bytes

    def read(self, name: str, begin: int, end: int) -> bytes:
        """See Files."""
        place = self._found(name)
        if place is None:
            return b""
        self._file.seek(place.begin + begin)
        return self._file.read(max(0, min(end, place.size_bytes) - begin))

    def _walk(self, path: Path) -> None:
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for number, member in enumerate(tar):
                    if number >= MAX_MEMBERS:
                        raise ImageUnreadable(f"{path} has more than {MAX_MEMBERS} files: it is no image")
                    self._note(member)
        except tarfile.TarError as error:
            raise ImageUnreadable(_reason(path)) from error

    def _note(self, member: tarfile.TarInfo) -> None:
        name = posixpath.normpath(member.name)
        if member.isreg():
            self._places[name] = _Place(member.offset_data, member.size)
        elif member.issym():
            self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.islnk():
            self._links[name] = posixpath.normpath(member.linkname)

    def _found(self, name: str) -> _Place | None:
        name = posixpath.normpath(name)
        for _ in range(_MAX_LINKS):
            if name in self._places:
                return self._places[name]
            name = self._links.get(name, "")
        return None


def _reason(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zX")):
        return f"{path} is compressed as a whole: decompress it first (gunzip, zstd -d)"
    return f"{path} is no image archive: it is not a tar, or cut off"
