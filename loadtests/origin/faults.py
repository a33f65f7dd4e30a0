"""What goes wrong, and when: the faults that a test or a benchmark asks for, and which request each of them hits.

Every fault says by `When` which requests it is for. `FaultPlan` decides; it holds all counts, does no I/O, and asks no
random generator: a probability is a digest over seed, fault, path, range and how often that was asked for, so that the
same requests fail whatever the order in which threads come. Faults of bodies hit GET alone.
"""

import hashlib
import threading
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """Which requests a fault is for.

    Attributes:
        path: a glob over the path of the URL, without its query; `*` matches slashes too.
        first: the number, from 1, of the matching request from which on it applies.
        most: how often it hits at most; None: without end.
        probability: of each request from `first` on.
        once_each: whether each range of each path is hit once only, so that asking again helps.
    """

    path: str = "*"
    first: int = 1
    most: int | None = None
    probability: float = 1.0
    once_each: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An error in the answer's place; `retry_after_seconds` becomes Retry-After."""

    kind: Literal["status"] = "status"
    when: When = field(default_factory=When)
    status: int = 503
    retry_after_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """The connection is reset after so many bytes of the body; None: in its middle."""

    kind: Literal["reset"] = "reset"
    when: When = field(default_factory=When)
    after_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate:
    """The connection is closed in order, but before all of Content-Length was sent; None: in the middle."""

    kind: Literal["truncate"] = "truncate"
    when: When = field(default_factory=When)
    after_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """Nothing comes for `seconds` after so many bytes of the body; None: in its middle."""

    kind: Literal["stall"] = "stall"
    when: When = field(default_factory=When)
    seconds: float
    after_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """One bit is wrong in the middle of every body, or, with `every_bytes`, in every so many bytes of the file.

    A byte is spoilt the first time that it is sent; `always`: each time.
    """

    kind: Literal["flip"] = "flip"
    when: When = field(default_factory=When)
    every_bytes: int | None = None
    always: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IgnoreRange:
    """200 with the whole file, whatever range was asked for."""

    kind: Literal["ignore_range"] = "ignore_range"
    when: When = field(default_factory=When)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongRange:
    """Content-Range names the bytes one after those that are sent."""

    kind: Literal["wrong_range"] = "wrong_range"
    when: When = field(default_factory=When)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """From this request on `model` is what lies in `directory`: other contents, other validators."""

    kind: Literal["change"] = "change"
    when: When = field(default_factory=When)
    model: str
    directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """Files are to be had under another host name only, at a signed address, valid for so long; None: for ever."""

    kind: Literal["redirect"] = "redirect"
    when: When = field(default_factory=When)
    valid_seconds: float | None = None
    status: int = 307


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireTokens:
    """No token that the registry's token service gave so far is good any more."""

    kind: Literal["expire_tokens"] = "expire_tokens"
    when: When = field(default_factory=When)


Fault = Status | Reset | Truncate | Stall | Flip | IgnoreRange | WrongRange | Change | Redirect | ExpireTokens

_OF_BODIES = (Reset, Truncate, Stall, Flip, IgnoreRange, WrongRange)


@dataclass(frozen=True, slots=True)
class Faults:
    """All that goes wrong. `seed` decides which requests a probability hits."""

    faults: tuple[Fault, ...] = ()
    seed: int = 0


NO_FAULTS = Faults()


@dataclass(slots=True)
class _Record:
    """What is remembered of one fault."""

    num_matching: int = 0
    num_hits: int = 0
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    hit: set[tuple[str, str]] = field(default_factory=set)


class FaultPlan:
    """Decides which faults hit a request; may be asked from many threads."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._records = [_Record() for _ in faults.faults]
        self._spoilt: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def hits(self, method: str, path: str, range_header: str) -> tuple[Fault, ...]:
        """The faults that hit this request, in the order in which they were given; counts it."""
        with self._lock:
            return tuple(
                fault
                for number, fault in enumerate(self._faults.faults)
                if fnmatchcase(path, fault.when.path)
                and (method == "GET" or not isinstance(fault, _OF_BODIES))
                and self._decide(number, fault.when, (path, range_header))
            )

    def flips(self, fault: Flip, path: str, begin: int, end: int) -> tuple[int, ...]:
        """Which bytes of the file, of `begin` to `end` (not included), are wrong this time."""
        with self._lock:
            wrong = [at for at in _positions(fault, begin, end) if fault.always or (path, at) not in self._spoilt]
            self._spoilt.update((path, at) for at in wrong)
            return tuple(wrong)

    def _decide(self, number: int, when: When, asked: tuple[str, str]) -> bool:
        record = self._records[number]
        record.num_matching += 1
        record.asked[asked] += 1
        if record.num_matching < when.first or (when.most is not None and record.num_hits >= when.most):
            return False
        if when.once_each and asked in record.hit:
            return False
        if self._chance(number, asked, record.asked[asked]) >= when.probability:
            return False
        record.num_hits += 1
        record.hit.add(asked)
        return True

    def _chance(self, number: int, asked: tuple[str, str], time: int) -> float:
        """From 0 to 1 (not included), the same for the same request."""
        text = repr((self._faults.seed, number, asked, time))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


def _positions(fault: Flip, begin: int, end: int) -> list[int]:
    if begin >= end:
        return []
    if fault.every_bytes is None:
        return [(begin + end) // 2]
    middle = fault.every_bytes // 2
    first = begin + (middle - begin) % fault.every_bytes
    return list(range(first, end, fault.every_bytes))
