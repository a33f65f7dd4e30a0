"""How few loads a sequence of requests can be served with, by somebody who knows it in advance.

Belady's rule: of the models in memory, the one goes that is wanted again furthest in the future (L. A. Belady, "A study
of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966). Requests are served one
after the other, in their order; a server that has many of them at once, and may serve those of one model together, can
do with fewer loads than that. Pure.
"""

import random
from collections.abc import Sequence

_NEVER = float("inf")


def fewest_loads(order: Sequence[str], num_places: int) -> int:
    """Loads that are needed to serve `order` from empty memory with room for `num_places` models of one size.

    Raises:
        ValueError: no places.
    """
    if num_places < 1:
        raise ValueError("a model needs a place")
    resident: set[str] = set()
    num_loads = 0
    for number, model in enumerate(order):
        if model in resident:
            continue
        num_loads += 1
        if len(resident) == num_places:
            resident.remove(_wanted_last(resident, order[number:]))
        resident.add(model)
    return num_loads


def _wanted_last(resident: set[str], future: Sequence[str]) -> str:
    return max(sorted(resident), key=lambda model: future.index(model) if model in future else _NEVER)


def random_order(models: Sequence[str], num_requests: int, *, seed: int) -> tuple[str, ...]:
    """As many requests of each model as of any other (one more of some), in an order that the seed decides."""
    order = [models[number % len(models)] for number in range(num_requests)]
    random.Random(seed).shuffle(order)
    return tuple(order)
