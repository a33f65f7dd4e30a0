"""How long the rows of the virtual half last."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """`seconds` of virtual time for which a load comes, `num_requests` of the tenant whose latencies are looked at,
    `num_disconnects` clients that leave."""

    seconds: float = 240.0
    num_requests: int = 150
    num_disconnects: int = 10_000


FULL = Scale()
SHORT = Scale(seconds=80.0, num_requests=40, num_disconnects=300)
