"""What was asked of the origin and what it sent, by path: the figures that bytes fetched are compared with.

Body bytes are counted as the socket took them, so that an answer that nobody read to its end counts as far as it got
into the kernel's buffers. Headers are not counted. A request counts when it came, its ranges as they were asked for.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class PathStats:
    """Of one path: `ranges` are the Range headers that came, in order; `statuses` counts answers by their status."""

    num_requests: int
    body_bytes: int
    ranges: tuple[str, ...]
    statuses: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Stats:
    """A moment's figures. `authorization_leaks`: requests for a redirect's target that carried Authorization."""

    paths: Mapping[str, PathStats]
    num_connections: int
    peak_connections: int
    authorization_leaks: int

    def body_bytes(self, path: str = "*") -> int:
        """Body bytes of the paths that match a glob."""
        return sum(of_path.body_bytes for of_path in self._matching(path))

    def num_requests(self, path: str = "*") -> int:
        """Requests for the paths that match a glob."""
        return sum(of_path.num_requests for of_path in self._matching(path))

    def ranges(self, path: str = "*") -> tuple[str, ...]:
        """Range headers for the paths that match a glob, in order for each path."""
        return tuple(text for of_path in self._matching(path) for text in of_path.ranges)

    def _matching(self, path: str) -> list[PathStats]:
        return [of_path for name, of_path in self.paths.items() if fnmatchcase(name, path)]


@dataclass(slots=True)
class _Path:
    num_requests: int = 0
    body_bytes: int = 0
    ranges: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


class Counters:
    """Counts from many threads. Open connections survive a reset."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        with self._lock:
            self._paths: dict[str, _Path] = {}
            self._accepted = self._peak = self._open
            self._leaks = 0

    def connected(self) -> None:
        """A connection was accepted."""
        with self._lock:
            self._open += 1
            self._accepted += 1
            self._peak = max(self._peak, self._open)

    def disconnected(self) -> None:
        """A connection was closed."""
        with self._lock:
            self._open -= 1

    def asked(self, path: str, range_header: str) -> None:
        """A request came; `range_header` is empty if it had none."""
        with self._lock:
            of_path = self._paths.setdefault(path, _Path())
            of_path.num_requests += 1
            if range_header:
                of_path.ranges.append(range_header)

    def answered(self, path: str, status: int) -> None:
        """An answer began."""
        with self._lock:
            self._paths.setdefault(path, _Path()).statuses[status] += 1

    def sent(self, path: str, num_bytes: int) -> None:
        """The socket took so many bytes of a body."""
        with self._lock:
            self._paths.setdefault(path, _Path()).body_bytes += num_bytes

    def leaked(self) -> None:
        """Authorization reached the target of a redirect."""
        with self._lock:
            self._leaks += 1

    def stats(self) -> Stats:
        """What there is so far."""
        with self._lock:
            paths = {
                name: PathStats(path.num_requests, path.body_bytes, tuple(path.ranges), dict(path.statuses))
                for name, path in self._paths.items()
            }
            return Stats(paths, self._accepted, self._peak, self._leaks)
