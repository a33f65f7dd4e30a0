"""What the models take of memory, and budgets that hold so many of them and no more.

The pool counts an engine by an estimate while it starts and by a measurement afterwards, and starts one at a time. A
budget of two has to have room for any of the three models beside any other one that serves, and for none beside two;
otherwise a row would not measure what it says.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from loadtests.cache_served import WrongResult

MIB = 2**20

# Measurements differ by some 20 MiB from start to start.
_LEAST_SPARE_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of one model. `seen_bytes` is what the process tree has more of since it is there."""

    model: str
    estimated_bytes: int
    measured_bytes: int
    seen_bytes: int


def budget_for(footprints: Sequence[Footprint], num_places: int) -> int:
    """A budget that holds any `num_places` of the models and never one more, with as much to spare on either side.

    Raises:
        WrongResult: there is none: sizes are too different, or the estimates too far off.
    """
    enough = max(_needs(footprints, num_places))
    too_little = min(_needs(footprints, num_places + 1))
    if too_little - enough < 2 * _LEAST_SPARE_BYTES:
        sizes = ", ".join(
            f"{each.model} {each.measured_bytes // MIB} (estimated {each.estimated_bytes // MIB})"
            for each in footprints
        )
        raise WrongResult(f"no budget holds {num_places} of these models and not one more; they take, in MiB: {sizes}")
    return (enough + too_little) // 2


def _needs(footprints: Iterable[Footprint], num_models: int) -> Iterator[int]:
    """What it takes to start the last one of so many models, for all of them and each as the last one."""
    for chosen in combinations(footprints, num_models):
        measured = sum(each.measured_bytes for each in chosen)
        for last in chosen:
            yield measured - last.measured_bytes + last.estimated_bytes
