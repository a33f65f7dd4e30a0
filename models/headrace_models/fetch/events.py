"""What a fetch tells about itself, as frozen values and as lines of JSON.

The order: Started, Noted any time, Indexed once the skeleton is complete (an engine may start then), Progress a few
times a second, and exactly one of Completed and Failed at the end.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from headrace_models.errors import ModelError
from headrace_models.trust import Trust


@dataclass(frozen=True, slots=True)
class Started:
    """The fetching process runs. `pid` is its process id."""

    reference: str
    pid: int


@dataclass(frozen=True, slots=True)
class Noted:
    """A line for people: a preparation step, a retry, an older revision that serves while the source is away."""

    message: str


@dataclass(frozen=True, slots=True)
class Indexed:
    """The model has its name in the store, its skeleton is complete, and readers may wait for its tensors.

    `trust` is what is reached once the fetch is complete.
    """

    key: str
    revision: str
    trust: Trust
    total_bytes: int


@dataclass(frozen=True, slots=True)
class GroupProgress:
    """How much of one group of tensors is here, in bytes."""

    name: str
    present_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. `present_bytes` of `total_bytes` are in the store, `fetched_bytes` of them came since the start;
    `bytes_per_second` is of the last seconds; `eta_seconds` is None while nothing comes."""

    present_bytes: int
    total_bytes: int
    fetched_bytes: int
    bytes_per_second: float
    eta_seconds: float | None
    groups: tuple[GroupProgress, ...]


@dataclass(frozen=True, slots=True)
class Completed:
    """Everything asked for is in the store and checked as far as `trust` says. `seconds` since Started."""

    key: str
    trust: Trust
    fetched_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """It ended without. `kind` is the name of the class in `errors`, `message` its one line."""

    kind: str
    message: str


FetchEvent = Started | Noted | Indexed | Progress | Completed | Failed

_CLASSES: Mapping[str, type[FetchEvent]] = {
    kind.__name__: kind for kind in (Started, Noted, Indexed, Progress, Completed, Failed)
}


def failure_of(error: ModelError) -> Failed:
    """The event for an error."""
    return Failed(type(error).__name__, str(error))


def to_json(event: FetchEvent) -> str:
    """One line."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def from_json(line: str) -> FetchEvent:
    """Read what `to_json` wrote; raises ValueError, KeyError or TypeError on anything else."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise TypeError("an event is an object")
    kind = _CLASSES[values.pop("event")]
    if "trust" in values:
        values["trust"] = Trust(values["trust"])
    if "groups" in values:
        values["groups"] = tuple(GroupProgress(**group) for group in values["groups"])
    return kind(**values)
