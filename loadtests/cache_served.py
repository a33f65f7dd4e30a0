"""The models that the origin serves, and whether what came of them is right.

A run counts only if its result is: the files in the store have the digests of those that are served, tensors that were
read have their names and contents. Digests of served files are computed once, before anything is measured.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from headrace_models.digest import sha256_of_file
from headrace_models.safetensors_header import LENGTH_BYTES, data_begin, read_header
from headrace_server.errors import HeadraceError
from loadtests.peers.intake import Intake

WEIGHTS = "*.safetensors"


class WrongResult(HeadraceError):
    """What came is not what is served: such a run is no measurement."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of the origin. `digests` are of all its files, in hex by path; `contents` is over names and contents of
    its tensors, as `Intake.digest` is."""

    name: str
    directory: Path
    digests: dict[str, str]
    contents: str
    num_tensors: int

    @property
    def weight_bytes(self) -> int:
        """Size of its shards."""
        return sum(path.stat().st_size for path in self.directory.glob(WEIGHTS))

    @property
    def total_bytes(self) -> int:
        """Size of all its files."""
        return sum((self.directory / path).stat().st_size for path in self.digests)

    @property
    def num_shards(self) -> int:
        """How many files hold its weights."""
        return len(list(self.directory.glob(WEIGHTS)))

    def check_intake(self, intake: Intake) -> None:
        """Raise WrongResult unless every tensor was read and was right."""
        if (intake.num_tensors, intake.digest) != (self.num_tensors, self.contents):
            raise WrongResult(f"{intake.peer} read {intake.num_tensors} tensors of {self.name}, or other bytes")

    def check_stored(self, stored: Path, *, partly: bool = False) -> None:
        """Raise WrongResult unless the shards and the skeleton below `stored` are those that are served.

        `partly`: only the skeleton is looked at, since of the shards not everything was to come.
        """
        found = _digests_below(stored / "skeleton", shards=False)
        if not partly:
            found |= _digests_below(stored / "shards", shards=True)
        shards = {path for path in self.digests if path.endswith(".safetensors")}
        if not partly and not shards <= found.keys():
            raise WrongResult(f"of {self.name} came only {', '.join(found)}")
        wrong = [path for path, digest in found.items() if self.digests.get(path) != digest]
        if wrong:
            raise WrongResult(f"of {self.name} came a wrong {wrong[0]}")

    def skeleton_bytes(self, stored: Path) -> int:
        """What was kept of it beside the weights."""
        return sum((stored / "skeleton" / path).stat().st_size for path in _paths(stored / "skeleton", shards=False))


def serve(name: str, directory: Path) -> ServedModel:
    """A model to be served; reads every byte of it twice. Raises OSError, ModelError."""
    digests = _digests_below(directory, shards=True) | _digests_below(directory, shards=False)
    tensors = {tensor: digest for path in directory.glob(WEIGHTS) for tensor, digest in _tensor_digests(path).items()}
    return ServedModel(name, directory, digests, digest_of_tensors(tensors), len(tensors))


def _digests_below(folder: Path, *, shards: bool) -> dict[str, str]:
    return {path: sha256_of_file(folder / path).hex for path in _paths(folder, shards=shards)}


def _paths(folder: Path, *, shards: bool) -> list[str]:
    """Of shards, or of everything else: a skeleton has the shards' headers in files of the same names."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.endswith(".safetensors") is shards)


def digest_of_tensors(digests: dict[str, str]) -> str:
    """One digest over the digests of tensors by name; `Intake.digest` is made alike."""
    return hashlib.sha256("".join(f"{part} {name}\n" for name, part in sorted(digests.items())).encode()).hexdigest()


def _tensor_digests(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        begin = data_begin(path.name, file.read(LENGTH_BYTES), path.stat().st_size)
        found = {}
        for name, entry in read_header(path).items():
            file.seek(begin + entry.begin)
            found[name] = hashlib.sha256(file.read(entry.size_bytes)).hexdigest()
    return found


def allocated_bytes(folder: Path) -> int:
    """What everything below a folder takes on disk, as `du` counts it; what vanishes meanwhile counts nothing."""
    total = 0
    for root, _folders, names in os.walk(folder):
        for path in (root, *(os.path.join(root, name) for name in names)):
            try:
                total += os.lstat(path).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def files_below(folder: Path) -> dict[str, int]:
    """Sizes of all files by their path in the folder."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
