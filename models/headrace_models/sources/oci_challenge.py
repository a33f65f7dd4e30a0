"""WWW-Authenticate: how a registry says what it wants to see (RFC 9110, 11.6.1). Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

MAX_CHALLENGE_CHARS = 8192

_SCHEME = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9-]*)(?=\s|,|$)(?!\s*=)")
_PARAMETER = re.compile(r'[\s,]*([A-Za-z0-9_.-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))')
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to be let in; `scheme` and the names of `parameters` are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(values: Iterable[str]) -> tuple[Challenge, ...]:
    """The challenges in the values of the header; what cannot be read ends the value that it is in."""
    return tuple(challenge for value in values for challenge in _challenges(value[:MAX_CHALLENGE_CHARS]))


def _challenges(value: str) -> Iterator[Challenge]:
    position = 0
    while scheme := _SCHEME.match(value, position):
        position = scheme.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(value, position):
            position = parameter.end()
            quoted, bare = parameter[2], parameter[3]
            parameters.setdefault(parameter[1].lower(), bare if quoted is None else _ESCAPE.sub(r"\1", quoted))
        yield Challenge(scheme[1].lower(), parameters)
