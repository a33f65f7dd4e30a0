"""How long requests will wait: what is let in before them, by the time that the engine takes for it.

While somebody waits, the engine's time is shared by all that it does: an output token takes its part of a step, a
prompt token what computing it adds to one. Where an engine does not measure its steps, time is cost by the rate at
which cost has been served. A request that needs a slot waits, besides, for the next one that comes free: at random
moments, that is as long as a request takes of the engine's time; where outputs are all of one length and began
together, until the oldest one ends. Nothing is known until something has been measured.
"""

from headrace_server.scheduling.capacity import Capacity
from headrace_server.scheduling.costs import Habits, Work
from headrace_server.scheduling.fair_queue import Entry, Flow
from headrace_server.scheduling.running import Running

_WINDOW_SECONDS = 0.5
_SMOOTHING = 0.3


class Pace:
    """What an engine serves in a second, in units of cost. `lately`: the latest windows in which it had work;
    `when_full`: the like of those in which somebody waited, or more if it was seen to do more."""

    def __init__(self) -> None:
        self.lately: float | None = None
        self.when_full: float | None = None
        self._start: tuple[float, float] | None = None

    def observe(self, served_cost: float, now: float, *, is_busy: bool, is_full: bool) -> None:
        """How much has been served up to now, and whether there has been work since the last time."""
        if not is_busy:
            self._start = None
            return
        if self._start is None:
            self._start = (now, served_cost)
            return
        seconds = now - self._start[0]
        if seconds >= _WINDOW_SECONDS:
            self._count((served_cost - self._start[1]) / seconds, is_full=is_full)
            self._start = (now, served_cost)

    def _count(self, rate: float, *, is_full: bool) -> None:
        if rate <= 0:
            return
        self.lately = _smoothed(self.lately, rate)
        if is_full:
            self.when_full = _smoothed(self.when_full, rate)
        elif self.when_full is None or rate > self.when_full:
            self.when_full = rate


class Estimator:
    """See the module."""

    def __init__(self, capacity: Capacity, running: Running, everybody: Habits) -> None:
        self.pace = Pace()
        self._capacity = capacity
        self._running = running
        self._everybody = everybody

    def engine_changed(self) -> None:
        """Nothing that was measured holds any longer."""
        self.pace = Pace()

    def seconds_of(self, work: Work) -> float | None:
        """That the engine will take for it, along with what else it does; None: not known."""
        times = self._capacity.steps.times
        if times is not None:
            per_output_token = times.seconds_per_output_token(self._running.load.num_slots)
            return times.per_prompt_token * work.num_computed_tokens + per_output_token * work.num_output_tokens
        if self.pace.when_full is not None:
            return work.cost / self.pace.when_full
        return None

    def wait_seconds(self, flow: Flow, own: Work, ahead: Work, num_free_slots: int) -> float | None:
        """Until a request is let in before which all of `ahead` is, `own` of it of the same tenant and class."""
        is_slot_free = ahead.num_requests < num_free_slots
        if ahead.num_requests == 0 and is_slot_free and flow.tenant.may_run_more:
            return 0.0
        seconds = self.seconds_of(ahead)
        prompt_seconds = self.seconds_of(
            Work(num_computed_tokens=ahead.num_computed_tokens, cost=ahead.num_computed_tokens)
        )
        if seconds is None or prompt_seconds is None:
            return None
        if is_slot_free:
            seconds = 0.0
        else:
            seconds *= 1 - num_free_slots / max(1.0, ahead.num_requests)
            seconds += self._first_release_seconds()
        return max(seconds, prompt_seconds, self._concurrency_seconds(flow, own)) * flow.correction.factor

    def least_service_seconds(self, entry: Entry) -> float:
        """From a request's admission to its end, less what it may be sooner by its tenant's habits; 0 where they say
        nothing of its length. Nothing is taken into account of what others will ask for meanwhile."""
        habits, demand = entry.tenant.habits, entry.demand
        num_sequences = 1 if demand is None else min(demand.num_sequences, self._capacity.slots)
        return habits.certainty * self._service_seconds(entry.work, num_sequences, step_seconds=self._step_seconds())

    def _first_release_seconds(self) -> float:
        typical = self._everybody.expected_work(None, self._capacity.weights)
        oldest = self._running.oldest
        together = 0.0 if oldest is None else self._remaining_seconds(oldest)
        together *= 1 - min(1.0, self._everybody.output_variation)
        return max(self.seconds_of(typical) or 0.0, together)

    def _concurrency_seconds(self, flow: Flow, own: Work) -> float:
        """What the tenant's own concurrency makes it wait."""
        limit = flow.tenant.terms.max_concurrency
        num_ahead = own.num_requests + flow.tenant.num_running
        if limit is None or num_ahead < limit:
            return 0.0
        typical = flow.tenant.expected_work(None, self._capacity.weights)
        return (num_ahead + 1 - limit) / limit * self._service_seconds(typical)

    def _remaining_seconds(self, entry: Entry) -> float:
        num_tokens = max(0.0, entry.work.num_output_tokens - entry.num_output_tokens)
        return self._service_seconds(Work(num_output_tokens=num_tokens), entry.num_slots)

    def _service_seconds(self, work: Work, num_sequences: int = 1, *, step_seconds: float | None = None) -> float:
        """From a request's admission to its end: computing its prompt takes the engine's time; then each of its
        sequences, side by side, gets a token in every step. Steps only decode unless it is said how long they take."""
        weights = self._capacity.weights
        num_prompt, num_output = work.num_computed_tokens, work.num_output_tokens
        prompt = Work(num_computed_tokens=num_prompt, cost=weights.prompt * num_prompt)
        output = Work(num_output_tokens=num_output, cost=weights.output * num_output)
        output_seconds = (self.seconds_of(output) or 0.0) * max(1, self._running.load.num_slots)
        if step_seconds is not None:
            output_seconds = step_seconds * num_output
        return (self.seconds_of(prompt) or 0.0) + output_seconds / max(1, num_sequences)

    def _step_seconds(self) -> float | None:
        """How long a step takes now: while there is work as long as the last ones, with the prompts that were in them.
        None: not known."""
        steps = self._capacity.steps
        if steps.times is None:
            return None
        return steps.times.decode_seconds(1) if self._running.load.num_slots == 0 else steps.recent_seconds


def _smoothed(before: float | None, value: float) -> float:
    return value if before is None else before + _SMOOTHING * (value - before)
