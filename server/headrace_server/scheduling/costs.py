"""What a request costs: an estimate before it has run, from what its tenant's requests turned out to need; the truth
after.

A token of a prompt that is computed costs 1, one that the engine has at hand 0.1, one of output 2 (Sheng et al.,
"Fairness in Serving Large Language Models", arXiv 2401.00588, weigh 1 and 2 and have no cached ones).
"""

import math
from dataclasses import dataclass

from headrace_server.domain import Demand

_HORIZON = 32  # requests that an average remembers: some seconds of a busy tenant
_KNOWN_AFTER_OUTPUTS = 8
_OUTPUT_TOKENS_BEFORE_ANY = 128  # of a sequence; short of most answers of chat models, long for labels


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """What a token costs."""

    prompt: float = 1.0
    cached: float = 0.1
    output: float = 2.0

    def cost(self, num_computed_tokens: float, num_cached_tokens: float, num_output_tokens: float) -> float:
        """Of so many tokens together."""
        return self.prompt * num_computed_tokens + self.cached * num_cached_tokens + self.output * num_output_tokens


@dataclass(slots=True)
class Work:
    """A sum over requests of what they are expected to take. Whole numbers, so that a sum of which everything has been
    taken away is 0; parts of it are not."""

    num_requests: float = 0
    num_computed_tokens: float = 0
    num_output_tokens: float = 0
    cost: float = 0

    def add(self, other: "Work", share: float = 1) -> None:
        """Add a share of other work; -1 takes it away."""
        self.num_requests += share * other.num_requests
        self.num_computed_tokens += share * other.num_computed_tokens
        self.num_output_tokens += share * other.num_output_tokens
        self.cost += share * other.cost


class Average:
    """The mean of what has come lately: of everything at first, then forgetting exponentially."""

    __slots__ = ("num_samples", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.num_samples = 0

    def add(self, sample: float) -> None:
        """Count one more."""
        self.num_samples = min(self.num_samples + 1, _HORIZON)
        self.value += (sample - self.value) / self.num_samples


class Correction:
    """How long waits have been lately, by what they were expected to be; between a half and 2."""

    __slots__ = ("_expected", "_waited")

    def __init__(self) -> None:
        self._expected = Average()
        self._waited = Average()

    def learn(self, expected_seconds: float | None, seconds: float) -> None:
        """A request has waited; one that joined before anything was known, or had not to wait, teaches nothing."""
        if expected_seconds:
            self._expected.add(expected_seconds)
            self._waited.add(seconds)

    @property
    def factor(self) -> float:
        """For what is expected next."""
        if self._expected.num_samples == 0:
            return 1.0
        return min(2.0, max(0.5, self._waited.value / self._expected.value))


class Habits:
    """What a tenant's requests need on average; until it has shown any, what everybody's do."""

    def __init__(self, everybody: "Habits | None" = None) -> None:
        self._everybody = everybody
        self._prompt = Average()
        self._told = Average()
        self._cached = Average()
        self._output = Average()
        self._output_squared = Average()
        self._num_known = 0

    def joined(self, num_prompt_tokens: int) -> None:
        """A request has been tokenised."""
        self._prompt.add(num_prompt_tokens)
        if self._everybody is not None:
            self._everybody.joined(num_prompt_tokens)

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        """A prompt has been worked through."""
        self._told.add(num_computed_tokens + num_cached_tokens)
        self._cached.add(num_cached_tokens)
        if self._everybody is not None:
            self._everybody.began(num_computed_tokens, num_cached_tokens)

    def ended(self, num_output_tokens: int, num_sequences: int) -> None:
        """A request that had begun is over."""
        length = num_output_tokens / num_sequences
        self._num_known = min(max(0, self._num_known) + 1, _HORIZON)
        self._output.add(length)
        self._output_squared.add(length * length)
        if self._everybody is not None:
            self._everybody.ended(num_output_tokens, num_sequences)

    @property
    def hit_rate(self) -> float:
        """The part of its prompts that the engine had at hand. A tenant's own or none: others' prefixes are theirs."""
        return self._cached.value / self._told.value if self._told.value > 0 else 0.0

    @property
    def num_prompt_tokens(self) -> float:
        """Of a request."""
        return (
            self._prompt.value
            if self._prompt.num_samples or self._everybody is None
            else self._everybody.num_prompt_tokens
        )

    @property
    def num_output_tokens(self) -> float:
        """Of a sequence."""
        if self._output.num_samples:
            return self._output.value
        return _OUTPUT_TOKENS_BEFORE_ANY if self._everybody is None else self._everybody.num_output_tokens

    @property
    def certainty(self) -> float:
        """How sure the length of the next output is: 1 where all were of one length, 0 where they vary as if by chance,
        or where too few are known. Every time that somebody is sent away for it, one less is known."""
        if self._num_known < _KNOWN_AFTER_OUTPUTS:
            return 0.0
        return max(0.0, 1 - self.output_variation)

    def doubt(self) -> None:
        """Somebody was sent away for how long its output would be, and nobody will know."""
        self._num_known -= 1

    @property
    def output_variation(self) -> float:
        """The standard deviation of the length of outputs, by their mean; 1 where nothing is known."""
        mean = self._output.value
        if mean <= 0:
            return 1.0
        return math.sqrt(max(0.0, self._output_squared.value - mean * mean)) / mean

    def expected_work(self, demand: Demand | None, weights: TokenWeights, num_output_tokens: float = 0) -> Work:
        """Of one request; None: it has not been tokenised. A sequence's output is at least so long as given."""
        num_prompt_tokens = self.expected_prompt(demand)
        num_cached = round(num_prompt_tokens * self.hit_rate)
        num_output = round(_expected_output(demand, max(self.num_output_tokens, num_output_tokens)))
        cost = round(weights.cost(num_prompt_tokens - num_cached, num_cached, num_output))
        return Work(1, num_prompt_tokens - num_cached, num_output, cost)

    def expected_prompt(self, demand: Demand | None) -> int:
        """Its tokens, or how many they will be."""
        if demand is None or demand.num_prompt_tokens is None:
            return round(self.num_prompt_tokens)
        return demand.num_prompt_tokens


def _expected_output(demand: Demand | None, num_tokens: float) -> float:
    """Of a request, where a sequence is expected to be so long."""
    if demand is None:
        return num_tokens
    expected = num_tokens * demand.num_sequences
    return expected if demand.max_output_tokens is None else min(expected, demand.max_output_tokens)
