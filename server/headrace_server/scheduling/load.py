"""What is in the engine, in the units in which it fills up."""

from dataclasses import dataclass


@dataclass(slots=True)
class Load:
    """What is in the engine, or what a request adds to it.

    `num_favoured_slots`: those that exceed the measured limit. `num_prompts`: requests whose prompts have not been
    worked through; `num_prefill_tokens`: of those prompts, `num_favoured_tokens`: of those of them that came in by a
    claim to the reserve, `num_computing_tokens` those of them that were there when the step began that is under way.
    `num_tokens`: of prompts and outputs, in the KV cache.
    """

    num_requests: int = 0
    num_slots: int = 0
    num_favoured_slots: int = 0
    num_prompts: int = 0
    num_prefill_tokens: int = 0
    num_favoured_tokens: int = 0
    num_computing_tokens: int = 0
    num_tokens: int = 0

    def add(self, other: "Load", times: int = 1) -> None:
        """-1 takes it away."""
        self.num_requests += times * other.num_requests
        self.num_slots += times * other.num_slots
        self.num_favoured_slots += times * other.num_favoured_slots
        self.num_prompts += times * other.num_prompts
        self.num_prefill_tokens += times * other.num_prefill_tokens
        self.num_favoured_tokens += times * other.num_favoured_tokens
        self.num_computing_tokens += times * other.num_computing_tokens
        self.num_tokens += times * other.num_tokens

    def copy(self) -> "Load":
        """Another one that is equal."""
        other = Load()
        other.add(self)
        return other
