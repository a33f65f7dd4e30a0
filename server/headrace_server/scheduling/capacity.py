"""How much may be in the engine at a time: sequences, prompt tokens that it has not worked through, KV cache.

The engine says what it takes, its measurements say what is good for it.

- Sequences ("slots"): what the engine takes, no more than the operator allows. While other than batch work is about, no
  more than decode within the target for a step; a model whose empty step alone takes half of that target is given
  twice its empty step, because fewer sequences would hardly make it faster.
- Prompt tokens: beside those of the step that is under way, what the engine computes in another one, because it begins
  a step before anybody can react to the end of the last. So its own waiting list is at most one step long.
- KV cache: prompts, outputs so far, and an allowance for what they will grow by. The allowance rises when the engine
  had to preempt, and falls slowly with each request that ends. Who is alone is always let in.

Of slots and prompt tokens a part is kept for those for whom it matters (`claims`): otherwise a tenant that holds all
slots with long outputs, or whose long prompts fill the steps, makes others wait for the end of one of them, however low
their counters are. An engine lets a prompt take so much of a step at most that another fits in beside it; a second long
one is let in only once the first is down to that, so that the rest of the step is there for short ones. What is kept
costs throughput, so unless interactive work has come lately it is no more than costs 3 % (it begins at the knee, the
fewest sequences that decode at 0.97 of the throughput of all), or a quarter of what the operator gave. The limit that
is measured may fall below what is in the engine already, and then nothing of the reserve is left; so tenants that hold
few slots may also exceed that limit, but not the engine's nor the operator's, by as many slots as the reserve has at
most.
"""

import math
from dataclasses import replace
from enum import Enum

from headrace_server.domain import EngineCapacity, EngineStats
from headrace_server.scheduling.claims import Claim
from headrace_server.scheduling.costs import Habits
from headrace_server.scheduling.load import Load
from headrace_server.scheduling.options import QueueOptions
from headrace_server.scheduling.step_model import StepModel, StepTimes

SLOTS_WHERE_NOTHING_IS_KNOWN = 32
STEP_TOKENS_WHERE_NOTHING_IS_KNOWN = 2048
KNEE_THROUGHPUT = 0.97
_FULL_KV_CACHE_USAGE = 0.95
_SHORT_KV_CACHE_USAGE = 0.9
_GROWTH_AT_REST = 0.25  # of the mean length of outputs: while some grow, others end
_MOST_GROWTH = 1.0
_GROWTH_AFTER_PREEMPTION = 1.1
_GROWTH_KEPT_PER_REQUEST = 0.99
_INTERACTIVE_EXPECTED_SECONDS = 60.0  # after the last one came


class Obstacle(Enum):
    """What stands in the way of a request; the value says it to people."""

    SLOTS = "a slot"
    PROMPTS = "prompts before it"
    MEMORY = "memory for its tokens"


class Capacity:
    """The limits of the module's docstring. `steps`: what is known of the engine's steps."""

    def __init__(self, options: QueueOptions, everybody: Habits) -> None:
        self.weights = options.weights
        self._options = options
        self._everybody = everybody
        self._last_interactive = -math.inf
        self._is_interactive_expected = False
        self._engine = EngineCapacity()
        self._stats = EngineStats()
        self._growth = _GROWTH_AT_REST
        self._is_batch_only = False
        self.steps = StepModel()
        self.slots = self.reserved_slots = self.step_tokens = self._most_slots = 0
        self._measure()

    def engine_changed(self, capacity: EngineCapacity) -> None:
        """Nothing that was measured holds any longer."""
        self._engine = capacity
        self._stats = EngineStats()
        self._growth = _GROWTH_AT_REST
        self.steps = StepModel()
        self._measure()

    def observe(self, stats: EngineStats) -> int | None:
        """See `QueuePolicy.observe`. Returns how many prompt tokens the steps computed that have ended since the
        last time; None: none has."""
        num_prefilled = max(0, stats.prefill_tokens_total - self._stats.prefill_tokens_total)
        has_ended_step = stats.num_steps_total != self._stats.num_steps_total
        if stats.num_preemptions_total > self._stats.num_preemptions_total:
            self._growth = min(_MOST_GROWTH, self._growth * _GROWTH_AFTER_PREEMPTION)
        self._stats = stats
        self.steps.observe(stats)
        self._measure()
        return num_prefilled if has_ended_step else None

    def request_ended(self) -> None:
        """The allowance for growth falls a little."""
        self._growth = max(_GROWTH_AT_REST, self._growth * _GROWTH_KEPT_PER_REQUEST)

    def interactive_came(self, now: float) -> None:
        """An interactive request: others may follow."""
        self._last_interactive = now

    def adapt(self, now: float, *, is_batch_only: bool) -> None:
        """`is_batch_only`: no other work is here, so nobody minds how long a step takes."""
        is_interactive_expected = now < self._last_interactive + _INTERACTIVE_EXPECTED_SECONDS
        if (is_batch_only, is_interactive_expected) != (self._is_batch_only, self._is_interactive_expected):
            self._is_batch_only, self._is_interactive_expected = is_batch_only, is_interactive_expected
            self._measure()

    @property
    def slots_ahead(self) -> int:
        """Sequences beyond the slots: about as many as end in a step, whose places the engine fills before anybody can
        react. None where the operator's own limit holds."""
        if self.slots == self._options.slot_limit:
            return 0
        return math.floor(min(self.slots / 8, self.slots / max(1.0, self._everybody.num_output_tokens)))

    def free_slots(self, load: Load, claim: Claim) -> int:
        """That are open to a request."""
        open_slots = self._open_slots(load, claim)
        if claim.may_exceed:
            num_favoured = math.floor(self._options.interactive_reserve * self.slots) - load.num_favoured_slots
            open_slots = max(open_slots, min(self._most_slots - load.num_slots, num_favoured))
        return max(0, open_slots)

    def is_favour(self, need: Load, load: Load, claim: Claim) -> bool:
        """Whether a request that can join exceeds the measured limit by it."""
        return need.num_slots > self._open_slots(load, claim)

    def _open_slots(self, load: Load, claim: Claim) -> int:
        kept = math.floor(self.reserved_slots * claim.kept)
        return self.slots + self.slots_ahead - kept - load.num_slots

    def obstacle(self, need: Load, load: Load, claim: Claim) -> Obstacle | None:
        """Why a request cannot join what is in the engine; None: it can."""
        if load.num_requests == 0:
            return None
        if need.num_slots > self.free_slots(load, claim):
            return Obstacle.SLOTS
        if not (self.has_prompt_room(need, load) or self._has_reserved_prompt_room(need, load, claim)):
            return Obstacle.PROMPTS
        if not self._has_memory(need, load):
            return Obstacle.MEMORY
        return None

    def has_prompt_room(self, need: Load, load: Load) -> bool:
        """Whether a prompt fits in beside the others without a claim to the reserve. What decodes takes its part of
        each step."""
        num_in_step = max(1, self.step_tokens - load.num_slots)
        num_open = num_in_step * (1 - self._options.interactive_reserve)
        num_computing = min(load.num_computing_tokens, num_in_step, load.num_prompts * self._longest_chunk)
        num_waiting = load.num_prefill_tokens - num_computing
        return num_waiting + min(need.num_prefill_tokens, num_open) <= num_open

    def limited(self, claim: Claim, need: Load, load: Load) -> Claim:
        """What is left of a request's claim: where a long prompt is being computed, a second one has no room of its
        own, because the two would fill every step."""
        is_long, is_one_there = need.num_prefill_tokens > self._longest_chunk, self._is_long_computing(load)
        return replace(claim, has_prompt_room=False) if is_long and is_one_there else claim

    def _is_long_computing(self, load: Load) -> bool:
        return load.num_prefill_tokens > load.num_prompts * self._longest_chunk

    def _has_reserved_prompt_room(self, need: Load, load: Load, claim: Claim) -> bool:
        """Those with a claim have a step's worth of their own: a long prompt that is being computed must not keep short
        ones out until it is done. Those whom the engine serves first have it beside what is being computed."""
        if not claim.has_prompt_room:
            return False
        num_open = (1 + claim.goes_first) * self.step_tokens
        return load.num_favoured_tokens + min(need.num_prefill_tokens, self.step_tokens) <= num_open

    @property
    def is_memory_short(self) -> bool:
        """Whether the engine may soon have to throw requests out of its KV cache; it begins with those that it serves
        last."""
        return self._stats.kv_cache_usage > _SHORT_KV_CACHE_USAGE

    def _has_memory(self, need: Load, load: Load) -> bool:
        if self._engine.kv_cache_tokens is None:
            return self._stats.kv_cache_usage < _FULL_KV_CACHE_USAGE
        growth = self._growth * self._everybody.num_output_tokens * (load.num_slots + need.num_slots)
        return self._kv_tokens(load) + need.num_tokens + growth <= self._engine.kv_cache_tokens

    def _kv_tokens(self, load: Load) -> float:
        """What is in the KV cache, or soon will be; prefixes that requests share are in it once."""
        if self._stats.kv_cache_usage == 0 or self._engine.kv_cache_tokens is None:
            return load.num_tokens
        measured = self._stats.kv_cache_usage * self._engine.kv_cache_tokens + load.num_prefill_tokens
        return min(load.num_tokens, measured)

    def _measure(self) -> None:
        times = self.steps.times
        self._most_slots = self._allowed_slots()
        self.slots = self._good_slots(times)
        self.reserved_slots = self._reserve(times)
        step_tokens = self._engine.max_num_batched_tokens
        self.step_tokens = STEP_TOKENS_WHERE_NOTHING_IS_KNOWN if step_tokens is None else step_tokens
        self._longest_chunk = self._engine.longest_chunk_tokens or self.step_tokens

    def _allowed_slots(self) -> int:
        limits = [limit for limit in (self._engine.max_num_seqs, self._options.slot_limit) if limit is not None]
        return min(limits, default=SLOTS_WHERE_NOTHING_IS_KNOWN)

    def _good_slots(self, times: StepTimes | None) -> int:
        slots = self._most_slots
        if times is not None and times.per_sequence > 0 and not self._is_batch_only:
            target = max(self._options.target_step_seconds, 2 * times.per_step)
            slots = min(slots, math.floor((target - times.per_step) / self._seconds_per_sequence(times)))
        return max(1, slots)

    def _seconds_per_sequence(self, times: StepTimes) -> float:
        """What a sequence adds to a step. While interactive work is about, with its part of the prompts that are to be
        computed so that as many sequences go on."""
        if not self._is_interactive_expected:
            return times.per_sequence
        num_prompt_tokens = (1 - self._everybody.hit_rate) * self._everybody.num_prompt_tokens
        return times.per_sequence + times.per_prompt_token * num_prompt_tokens / max(
            1.0, self._everybody.num_output_tokens
        )

    def _reserve(self, times: StepTimes | None) -> int:
        """None of fewer than 8 slots by default: one is more than the operator gave."""
        most = math.floor(self._options.interactive_reserve * self.slots)
        if most < 1 or times is None or self._is_interactive_expected:
            return most
        return min(most, max(1, most // 4, self.slots - _knee(times, self.slots)))


def _knee(times: StepTimes, num_sequences: int) -> int:
    """The fewest sequences that decode at `KNEE_THROUGHPUT` of the throughput of so many: n with
    n / (a + b·n) ≥ k · N / (a + b·N)."""
    fixed = KNEE_THROUGHPUT * num_sequences * times.per_step
    slope = times.per_step + (1 - KNEE_THROUGHPUT) * times.per_sequence * num_sequences
    return math.ceil(fixed / slope) if slope > 0 else 1
