"""What is asked of a server, and when. Pure: equal seeds give equal loads."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from headrace_server.bench.arrivals import poisson_times
from headrace_server.domain import ServiceClass


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `deadline_seconds` is from when it is sent; `key` is which of the tenant's keys it comes with."""

    tenant: str
    num_prompt_tokens: int
    num_output_tokens: int
    service_class: ServiceClass = ServiceClass.STANDARD
    deadline_seconds: float | None = None
    stream: bool = True
    key: str = ""


@dataclass(frozen=True, slots=True)
class Due:
    """A request that comes so many seconds after the beginning, whatever became of others."""

    at_seconds: float
    ask: Ask


def poisson(ask: Ask, rate: float, seconds: float, *, seed: str, begin_seconds: float = 0.0) -> tuple[Due, ...]:
    """Equal requests at independent times, as many as come on average in so many seconds."""
    count = max(1, round(rate * seconds))
    return tuple(Due(begin_seconds + at, ask) for at in poisson_times(rate, count, seed=seed))


def together(*loads: Iterable[Due]) -> tuple[Due, ...]:
    """Several loads at once, in the order of time."""
    return tuple(sorted((due for load in loads for due in load), key=lambda due: due.at_seconds))


def with_keys(ask: Ask, num_keys: int) -> tuple[Ask, ...]:
    """The same request with each of so many keys."""
    return tuple(replace(ask, key=f"key-{number}") for number in range(num_keys))
