"""What an operator may set of the queue before each engine."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace_server.domain import ServiceClass
from headrace_server.scheduling.costs import TokenWeights


def _longest_waits() -> Mapping[ServiceClass, float | None]:
    return {ServiceClass.INTERACTIVE: 1.0, ServiceClass.STANDARD: 120.0, ServiceClass.BATCH: None}


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """See the settings of the same names.

    Attributes:
        max_requests: that wait, or are on their way to the queue.
        max_tokens: of prompts that wait.
        max_bytes: of the bodies of requests that wait, or are on their way to the queue.
        slot_limit: sequences in the engine, if the operator wants fewer than it takes; None: as many as it takes.
        interactive_reserve: the part of slots and prompt tokens that is kept from work that is not interactive, and
            from tenants that hold much already.
        target_step_seconds: how long a step may take that decodes for interactive or standard work.
        weights: what tokens cost.
        max_wait_seconds: nobody is let into the queue who would wait for longer; None: no bound.
    """

    max_requests: int = 2048
    max_tokens: int = 4_000_000
    max_bytes: int = 256 * 2**20
    slot_limit: int | None = None
    interactive_reserve: float = 0.125
    target_step_seconds: float = 0.15
    weights: TokenWeights = field(default_factory=TokenWeights)
    max_wait_seconds: Mapping[ServiceClass, float | None] = field(default_factory=_longest_waits)
