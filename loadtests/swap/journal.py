"""What a running Headrace has written in its log about engines: which were loaded, how long it took, which died.

The log is read anew each time; lines are JSON, and those that are not (what libraries print) are passed over.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.cache_served import WrongResult

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Load:
    """An engine that has started. `seconds`: how long that took, in hundredths; sizes are in whole MiB, rounded
    down."""

    model: str
    seconds: float
    measured_bytes: int
    estimated_bytes: int


class Journal:
    """The log of one server, which may not have begun it yet."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def loads(self) -> list[Load]:
        """Every engine that has started so far, in the order in which they were ready."""
        return [_load(line) for line in self._lines() if line.get("event") == "model_loaded"]

    def deaths(self) -> list[str]:
        """The models of engines that were found dead or hung, in that order."""
        return [str(line["model"]) for line in self._lines() if line.get("event") == "engine_died"]

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        for text in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not text.startswith("{"):
                continue
            with suppress(ValueError):  # being written, or broken by somebody else's output
                yield json.loads(text)


def only_load(loads: Sequence[Load], model: str) -> Load:
    """The one engine that should have started. Raises WrongResult where it was another one, or not one."""
    if [load.model for load in loads] != [model]:
        started = ", ".join(load.model for load in loads) or "none"
        raise WrongResult(f"one engine should have started, {model}, and it was {started}")
    return loads[0]


def _load(line: dict[str, Any]) -> Load:
    return Load(
        model=str(line["model"]),
        seconds=float(line["seconds"]),
        measured_bytes=int(line["memory_mib"]) * MIB,
        estimated_bytes=int(line["estimated_mib"]) * MIB,
    )
