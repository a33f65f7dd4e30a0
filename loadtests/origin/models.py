"""The models that are served: directories, their files, and the digests of those.

A directory is listed once, when a model gets it. What a model was before stays to be had by its commit or by digest, as
on a hub or in a registry; `current` is what plain files and the bucket show. A file's digest is computed when it is
first asked for, and once: it is kept for as long as the file's identity, size and time are the same.
"""

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# What git LFS would take: everything else gets a git blob id instead of a SHA-256 on the hub.
LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", ".tensors")
LFS_BYTES = 10 << 20


class Digests:
    """SHA-256 of files, in hex, each computed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], str] = {}
        self._lock = threading.Lock()

    def sha256(self, location: Path) -> str:
        """Reads the file, unless its digest is known. Raises OSError."""
        status = location.stat()
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if identity not in self._known:
            with self._lock, location.open("rb", buffering=0) as file:
                if identity not in self._known:
                    self._known[identity] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._known[identity]


@dataclass(frozen=True, slots=True)
class ServedFile:
    """One file of a model; `etag` is strong and quoted, from the file's identity, size and time, not from its bytes."""

    path: str
    location: Path
    size_bytes: int
    etag: str
    modified: float
    digests: Digests = field(repr=False, compare=False)

    @property
    def sha256(self) -> str:
        """64 hex digits; the first time reads the file."""
        return self.digests.sha256(self.location)

    @property
    def is_lfs(self) -> bool:
        """Whether the hub keeps it outside git."""
        return self.path.endswith(LFS_SUFFIXES) or self.size_bytes >= LFS_BYTES

    @property
    def git_blob_id(self) -> str:
        """How git names the content; small files only."""
        data = self.location.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Version:
    """What a model is, or was."""

    name: str
    directory: Path
    files: tuple[ServedFile, ...]

    @cached_property
    def commit(self) -> str:
        """40 hex digits over all paths and contents; the first time reads every file."""
        listing = "".join(f"{file.sha256} {file.path}\n" for file in self.files)
        return hashlib.sha256(listing.encode()).hexdigest()[:40]

    def file(self, path: str) -> ServedFile | None:
        """The file with that path."""
        return next((file for file in self.files if file.path == path), None)


class Shelf:
    """All models by name; names may hold slashes. May be used from many threads."""

    def __init__(self, models: Mapping[str, Path]) -> None:
        self._digests = Digests()
        self._versions = {name: [self._read(name, directory)] for name, directory in models.items()}

    @property
    def names(self) -> Sequence[str]:
        """All names."""
        return sorted(self._versions)

    def versions(self, name: str) -> Sequence[Version]:
        """What a model is and was, the current one first; none of an unknown model."""
        return tuple(reversed(self._versions.get(name, ())))

    def current(self, name: str) -> Version | None:
        """What a model is now."""
        return next(iter(self.versions(name)), None)

    def split(self, path: str) -> tuple[Version, str] | None:
        """The model whose name begins `path`, and the rest after the slash."""
        for name in sorted(self._versions, key=len, reverse=True):
            if path == name or path.startswith(f"{name}/"):
                return self._versions[name][-1], path[len(name) + 1 :]
        return None

    def compute_digests(self) -> None:
        """Read every file now, so that no client waits for it."""
        for versions in self._versions.values():
            for file in versions[-1].files:
                self._digests.sha256(file.location)

    def replace(self, name: str, directory: Path) -> None:
        """From now on the model is what lies in `directory`. Raises KeyError for an unknown model."""
        self._versions[name].append(self._read(name, directory))

    def _read(self, name: str, directory: Path) -> Version:
        if not directory.is_dir():
            raise NotADirectoryError(f"the model {name} has no directory {directory}")
        locations = sorted(path for path in directory.rglob("*") if path.is_file())
        return Version(name, directory, tuple(self._file(directory, location) for location in locations))

    def _file(self, directory: Path, location: Path) -> ServedFile:
        status = location.stat()
        identity = f"{os.fspath(location)} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
        return ServedFile(
            path=location.relative_to(directory).as_posix(),
            location=location,
            size_bytes=status.st_size,
            etag=f'"{hashlib.sha256(identity.encode()).hexdigest()[:32]}"',
            modified=status.st_mtime,
            digests=self._digests,
        )
