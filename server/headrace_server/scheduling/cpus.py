"""Which processors an engine computes on: those of the machine in equal shares, each engine on the least used one.

An engine's computing threads wait for one another at each step, so that two engines on the same processors wait for the
slowest thread of both. Written as in `taskset -c` and in Linux's cpulist files: `0-3,8`. Pure.
"""

import re
from collections.abc import Sequence
from itertools import groupby

_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


def share_of(cpus: Sequence[int], num_shares: int) -> tuple[tuple[int, ...], ...]:
    """So many shares of neighbouring processors, their sizes at most one apart; fewer where there are fewer processors,
    one at least where there are any."""
    num_shares = min(max(num_shares, 1), len(cpus))
    if num_shares == 0:
        return ()
    bounds = [-(-len(cpus) * index // num_shares) for index in range(num_shares + 1)]
    return tuple(tuple(cpus[start:end]) for start, end in zip(bounds, bounds[1:], strict=False))


def least_used(shares: Sequence[tuple[int, ...]], used: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The share that the fewest engines compute on, the first of several; `used` has the processors of each engine.

    Raises:
        ValueError: there are no shares.
    """
    return min(shares, key=lambda share: sum(not set(share).isdisjoint(engine) for engine in used))


def as_text(cpus: Sequence[int]) -> str:
    """(0, 1, 2, 8) → `0-2,8`. Sorted, each once."""
    runs = groupby(enumerate(sorted(set(cpus))), key=lambda place: place[1] - place[0])
    ranges = [[cpu for _, cpu in run] for _, run in runs]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ranges)


def parsed(text: str) -> tuple[int, ...]:
    """`0-2,8` → (0, 1, 2, 8). Sorted, each once; the empty text names none.

    Raises:
        ValueError: it is no such list.
    """
    cpus: set[int] = set()
    for part in text.split(",") if text else ():
        cpus.update(_range(part))
    return tuple(sorted(cpus))


def _range(text: str) -> range:
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:20]!r} is no range of processors")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise ValueError(f"{text!r} is no range of processors: it runs backwards")
    return range(first, last + 1)
