"""How the files of a wheel become a directory that an engine loads.

A recipe turns verified source files into files in an empty directory; it knows nothing of locks, names, manifests or
crashes, which `preparation` owns. Its `id` goes into the directory's name: raise the number in it whenever the same
sources would give other files.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headrace_models.child_process import run_module


class Recipe(Protocol):
    """Makes a model directory from source files."""

    @property
    def id(self) -> str:
        """Name and version, as in `copy/1`."""
        ...

    def make(self, sources: Path, paths: Sequence[str], destination: Path, *, report: Callable[[int], None]) -> None:
        """Fill `destination`, which exists and is empty, from the files `paths` below `sources`.

        Blocks. Calls `report` with the bytes written so far, several times a second; what `report` raises is passed
        on at once, with no process or thread left behind. Raises OSError or PreparationFailed; what it leaves in
        `destination` then is thrown away.
        """
        ...


@dataclass(frozen=True, slots=True)
class CopyFiles:
    """Copies the files as they are. Copies, not links: a reinstalled wheel must not change a running model."""

    id: str = "copy/1"

    def make(self, sources: Path, paths: Sequence[str], destination: Path, *, report: Callable[[int], None]) -> None:
        """See Recipe."""
        done_bytes = 0
        for path in paths:
            target = destination / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sources / path, target)
            done_bytes += target.stat().st_size
            report(done_bytes)


@dataclass(frozen=True, slots=True)
class DequantiseGguf:
    """Dequantises one GGUF file to bfloat16 safetensors, in a child process (about 25 s for 135 M parameters)."""

    id: str = "gguf-to-bfloat16/1"

    def make(self, sources: Path, paths: Sequence[str], destination: Path, *, report: Callable[[int], None]) -> None:
        """See Recipe. `paths` is the one GGUF file."""
        (gguf,) = paths
        run_module(
            "headrace_models.gguf_conversion",
            [str(sources / gguf), str(destination)],
            environment=OFFLINE,
            while_waiting=lambda: report(sum(file.stat().st_size for file in destination.iterdir())),
        )


# The converter must neither ask a model hub for anything, nor take a GPU, nor draw progress bars.
OFFLINE = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
