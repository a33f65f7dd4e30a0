"""A directory of this machine as a source: every regular file in it, pinned by size, time of change and inode.

Names that begin with a dot are no part of a model (`.git`, download caches). A link may lead to a file inside the
directory; links that leave it, links to nothing and files that are not regular refuse the whole directory. A file is
compared with its pin when it is opened and after every block, so bytes of a file that changes under way are never
given out as the pinned ones; a change that restores size and time of change is not noticed.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from headrace_models.errors import ModelNotFound, SourceChanged, SourceUnavailable, SourceUnusable, UnsafeModel
from headrace_models.reference import ModelReference
from headrace_models.sources.base import Body, SourceFile
from headrace_models.sources.file_path import checked_path
from headrace_models.sources.listing import ListedSource, checked_listing

MAX_CONNECTIONS = 4


class LocalDirectory(ListedSource):
    """See Source. Lists the directory when it is made, or of it the files `names` alone; raises ModelNotFound,
    UnsafeModel, SourceUnusable."""

    def __init__(self, reference: ModelReference, *, names: Sequence[str] | None = None) -> None:
        self._root = Path(reference.location)
        super().__init__(_listing(self._root, names), max_connections=MAX_CONNECTIONS)
        self._closed = False

    @contextmanager
    def read(self, file: SourceFile, begin: int, end: int) -> Iterator[Body]:
        """See Source."""
        if self._closed:
            raise SourceUnavailable("the source is closed")
        descriptor = _open(self._root / checked_path(file.path), file.path)
        try:
            _check_unchanged(descriptor, file)
            yield _LocalBody(self, descriptor, file, begin, end)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """See Source."""
        self._closed = True

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed


class _LocalBody:
    """See Body."""

    def __init__(self, source: LocalDirectory, descriptor: int, file: SourceFile, begin: int, end: int) -> None:
        self._source = source
        self._descriptor = descriptor
        self._file = file
        self._begin, self._end, self._position = begin, end, begin

    @property
    def begin(self) -> int:
        """See Body."""
        return self._begin

    @property
    def end(self) -> int:
        """See Body."""
        return self._end

    def read(self, max_bytes: int) -> bytes:
        """See Body. Raises SourceChanged too."""
        if self._source.is_closed:
            raise SourceUnavailable("the source is closed")
        if self._position >= self._end:
            return b""
        try:
            data = os.pread(self._descriptor, min(max_bytes, self._end - self._position), self._position)
        except OSError as error:
            raise SourceUnavailable(f"{self._file.path} cannot be read: {error.strerror}") from error
        _check_unchanged(self._descriptor, self._file)
        if not data:
            raise SourceChanged(f"{self._file.path} is shorter than it was")
        self._position += len(data)
        return data


def _listing(root: Path, names: Sequence[str] | None) -> tuple[SourceFile, ...]:
    if not root.exists():
        raise ModelNotFound(f"{root}: no such directory")
    if not root.is_dir():
        raise UnsafeModel(f"{root.name} is a file; a model is a directory with config.json and safetensors")
    try:
        return checked_listing(_walk(root) if names is None else _named(root, names))
    except OSError as error:
        raise SourceUnusable(f"{root} cannot be read: {error.strerror or error}") from error


def _named(root: Path, names: Sequence[str]) -> Iterator[SourceFile]:
    for name in names:
        yield from _entry(root / name, root, os.path.realpath(root))


def _walk(root: Path) -> Iterator[SourceFile]:
    def raise_error(error: OSError) -> None:
        raise error

    real_root = os.path.realpath(root)
    for folder, folders, names in os.walk(root, onerror=raise_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted([*folders, *names]):
            if not name.startswith("."):
                yield from _entry(Path(folder, name), root, real_root)


def _entry(path: Path, root: Path, real_root: str) -> Iterator[SourceFile]:
    name = checked_path(path.relative_to(root).as_posix())
    if path.is_symlink():
        _check_link(path, name, real_root)
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeModel(f"{name} is not a regular file")
    yield SourceFile(name, status.st_size, _validator(status))


def _check_link(path: Path, name: str, real_root: str) -> None:
    if not Path(os.path.realpath(path)).is_relative_to(real_root):
        raise UnsafeModel(f"{name} is a link that leaves the directory; copy the files: cp -rL DIRECTORY COPY")
    if not path.exists():
        raise UnsafeModel(f"{name} is a link to nothing")


def _validator(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _open(path: Path, name: str) -> int:
    """Not blocking, should it have become a FIFO since."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise SourceChanged(f"{name} is gone") from error
    except OSError as error:
        raise SourceUnusable(f"{name} cannot be opened: {error.strerror}") from error


def _check_unchanged(descriptor: int, file: SourceFile) -> None:
    """The inode is part of the pin, so another file by the same name is noticed, a link out of the directory too."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or _validator(status) != file.validator:
        raise SourceChanged(f"{file.path} is not the file that it was: it changed on disk")
