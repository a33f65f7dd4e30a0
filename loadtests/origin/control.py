"""The origin's own paths: `/control/stats` (GET), `/control/faults`, `/control/link` and `/control/reset` (POST).

Bodies are JSON: a `Faults`, a `Link`; unknown fields are refused, so that a fault with a misspelt name does not pass
for one that never hit. Answers are 200 with the `Stats`, 400 with the reason, or 404.
"""

from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from loadtests.origin.counters import Stats
from loadtests.origin.faults import Faults
from loadtests.origin.link import Link
from loadtests.origin.messages import Answer, Request, plain

PREFIX = "/control/"


class Controlled(Protocol):
    """What may be asked of an origin, wherever it runs."""

    def stats(self) -> Stats:
        """What was asked and sent since the start or the last reset."""
        ...

    def reset(self) -> None:
        """Set all counters to nothing."""
        ...

    def set_faults(self, faults: Faults) -> None:
        """Let these faults hit, and no others, from the next request on."""
        ...

    def set_link(self, link: Link) -> None:
        """Be as fast as `link` says, from the next request on."""
        ...


def control_answer(origin: Controlled, request: Request) -> Answer:
    """Do what is asked, and tell the figures."""
    try:
        _obey(origin, request)
    except ValidationError as error:
        return plain(400, str(error))
    except KeyError:
        return plain(404)
    return Answer(200, (("Content-Type", "application/json"),), dump_stats(origin.stats()))


def _obey(origin: Controlled, request: Request) -> None:
    """Raises ValidationError, and KeyError for an unknown path."""
    match request.method, request.path.removeprefix(PREFIX):
        case "GET", "stats":
            pass
        case "POST", "reset":
            origin.reset()
        case "POST", "faults":
            origin.set_faults(TypeAdapter(Faults).validate_json(request.body, extra="forbid"))
        case "POST", "link":
            origin.set_link(TypeAdapter(Link).validate_json(request.body, extra="forbid"))
        case _:
            raise KeyError(request.path)


def dump_stats(stats: Stats) -> bytes:
    """Figures as JSON."""
    return TypeAdapter(Stats).dump_json(stats)


def load_stats(data: bytes) -> Stats:
    """Figures from JSON; raises ValidationError."""
    return TypeAdapter(Stats).validate_json(data)
