"""`headrace.json`: the list of files, with sizes and digests, that a prepared directory was published with.

The manifest is written last, inside the directory, before the directory gets its public name; so a directory with a
manifest was complete once. `check_sizes` tells cheaply (one `lstat` a file) whether it still is: exactly the listed
files, each a regular file of the listed size. `check_digests` reads every byte. A manifest is parsed strictly: what
cannot be read is treated as damage by the caller, never repaired.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace_models.digest import Sha256, sha256_of_file
from headrace_models.errors import DigestMismatch, ModelError

MANIFEST_NAME = "headrace.json"
FORMAT = 1
MAX_MANIFEST_BYTES = 16 << 20


class DamagedDirectory(ModelError):
    """A prepared directory is not what its manifest says."""


@dataclass(frozen=True, slots=True, order=True)
class FileEntry:
    """One file: `path` is relative to the directory, with forward slashes."""

    path: str
    size_bytes: int
    digest: Sha256


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a directory holds and what it was made from. `recipe` names how, with its version."""

    reference: str
    recipe: str
    sources: tuple[FileEntry, ...]
    files: tuple[FileEntry, ...]

    def to_json(self) -> str:
        """The manifest as it stands in the file."""
        return json.dumps(
            {
                "format": FORMAT,
                "reference": self.reference,
                "recipe": self.recipe,
                "sources": [_entry_to_object(entry) for entry in self.sources],
                "files": [_entry_to_object(entry) for entry in self.files],
            },
            indent=2,
        )


def list_files(directory: Path) -> Iterator[str]:
    """Paths, relative and sorted, of everything below `directory` that is not a directory; links are not followed."""

    def raise_error(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(directory, onerror=raise_error):
        folders.sort()
        for name in sorted(names + [folder for folder in folders if (Path(root) / folder).is_symlink()]):
            yield (Path(root) / name).relative_to(directory).as_posix()


def describe_files(directory: Path) -> tuple[FileEntry, ...]:
    """An entry for every file below `directory`, the manifest itself left out; reads every byte."""
    paths = [path for path in list_files(directory) if path != MANIFEST_NAME]
    return tuple(FileEntry(path, (directory / path).stat().st_size, sha256_of_file(directory / path)) for path in paths)


def read_manifest(directory: Path) -> Manifest:
    """The manifest in `directory`; raises DamagedDirectory when it is missing or not strictly well formed."""
    path = directory / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
        if len(data) > MAX_MANIFEST_BYTES:
            raise DamagedDirectory(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
        return _manifest_from_object(json.loads(data))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedDirectory(f"{path} cannot be used ({error})") from error


def check_sizes(directory: Path, manifest: Manifest) -> None:
    """Raises DamagedDirectory unless `directory` holds exactly the listed files in their sizes; opens none."""
    expected = {entry.path: entry.size_bytes for entry in manifest.files}
    try:
        found = {path: _regular_size(directory / path) for path in list_files(directory)}
    except OSError as error:
        raise DamagedDirectory(f"{directory} cannot be read ({error})") from error
    found.pop(MANIFEST_NAME, None)
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            raise DamagedDirectory(f"{directory / path} is {_size(found, path)}, it should be {_size(expected, path)}")


def check_digests(directory: Path, files: Sequence[FileEntry]) -> None:
    """Read every listed file; raises DigestMismatch naming the first that differs, OSError when one cannot be read."""
    for entry in files:
        digest = sha256_of_file(directory / entry.path)
        if digest != entry.digest:
            raise DigestMismatch(f"{directory / entry.path} has digest {digest}, it should have {entry.digest}")


def _size(sizes: Mapping[str, int | None], path: str) -> str:
    if path not in sizes:
        return "absent"
    size = sizes[path]
    return "no regular file" if size is None else f"{size} bytes"


def _regular_size(path: Path) -> int | None:
    status = path.lstat()
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _entry_to_object(entry: FileEntry) -> dict[str, object]:
    return {"path": entry.path, "size_bytes": entry.size_bytes, "digest": str(entry.digest)}


def _entry_from_object(value: object) -> FileEntry:
    match value:
        case {"path": str(path), "size_bytes": int(size_bytes), "digest": str(digest)} if size_bytes >= 0:
            return FileEntry(path, size_bytes, Sha256.parse(digest))
        case _:
            raise ValueError("an entry is malformed")


def _manifest_from_object(value: object) -> Manifest:
    match value:
        case {
            "format": 1,
            "reference": str(reference),
            "recipe": str(recipe),
            "sources": list(sources),
            "files": [_, *_] as files,
        }:
            return Manifest(
                reference,
                recipe,
                tuple(map(_entry_from_object, sources)),
                tuple(map(_entry_from_object, files)),
            )
        case _:
            raise ValueError("not a manifest of format 1")
