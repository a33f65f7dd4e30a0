"""What is in the engine: its load, and what each request in it was charged and given."""

from headrace_server.domain import ServiceClass
from headrace_server.queueing import Stage, TicketId
from headrace_server.scheduling.costs import TokenWeights
from headrace_server.scheduling.fair_queue import Entry
from headrace_server.scheduling.load import Load

MOST_PREEMPTIONS = 3  # of one request: then it is let finish, so that batch work gets done


class Running:
    """Requests that have been let in and are not over, oldest first.

    Attributes:
        load: all of them together.
        served_cost: of all that the engine has done.
    """

    def __init__(self, weights: TokenWeights) -> None:
        self.entries: dict[TicketId, Entry] = {}
        self.load = Load()
        self._weights = weights
        self._prompt_cost = 0.0
        self._num_output_tokens = 0
        self._num_prefilled = 0
        self._num_computing: int | None = None

    @property
    def load_now(self) -> Load:
        """The load, less what has been computed of prompts that have not been told of. Of an engine that does not say
        when its steps end, all that is to be computed may be so already."""
        load = self.load.copy()
        load.num_prefill_tokens = max(0, load.num_prefill_tokens - self._num_prefilled)
        load.num_computing_tokens = load.num_prefill_tokens
        if self._num_computing is not None:
            load.num_computing_tokens = min(load.num_prefill_tokens, self._num_computing)
        return load

    @property
    def served_cost(self) -> float:
        """See the class."""
        return self._prompt_cost + self._weights.output * self._num_output_tokens

    @property
    def oldest(self) -> Entry | None:
        """Who was let in first."""
        return next(iter(self.entries.values()), None)

    def load_that_stays(self) -> Load:
        """Without those that have been named for preemption."""
        load = self.load_now
        for entry in self.entries.values():
            if entry.is_leaving:
                load.add(held_by(entry), -1)
        return load

    def admit(self, entry: Entry, need: Load, now: float) -> None:
        """It is handed to the engine: its prompt is charged as it was estimated."""
        entry.stage, entry.since = Stage.RUNNING, now
        entry.num_slots, entry.num_prefill_tokens = need.num_slots, need.num_prefill_tokens
        entry.num_favoured_slots = need.num_favoured_slots
        entry.num_favoured_tokens = need.num_favoured_tokens
        entry.num_untold_tokens = entry.num_prompt_tokens
        entry.token_price = self._weights.output / entry.tenant.terms.weight
        num_computed = entry.work.num_computed_tokens
        entry.prompt_cost = self._weights.cost(num_computed, entry.num_prompt_tokens - num_computed, 0)
        entry.flow.charge(entry.prompt_cost)
        entry.tenant.num_running += 1
        entry.tenant.num_slots += entry.num_slots
        entry.tenant.num_prefill_tokens += entry.num_prefill_tokens
        self.entries[entry.ticket] = entry
        self.load.add(need)

    def release(self, entry: Entry) -> None:
        """It is in the engine no longer: what was charged for a prompt that was not told of is given back."""
        del self.entries[entry.ticket]
        self._forget_prompt(entry)
        self.load.add(held_by(entry), -1)
        entry.flow.charge(-entry.prompt_cost)
        entry.tenant.num_running -= 1
        entry.tenant.num_slots -= entry.num_slots
        entry.tenant.num_prefill_tokens -= entry.num_prefill_tokens
        entry.tenant.num_output_tokens -= entry.num_output_tokens
        entry.tenant.served_cost += self._weights.output * entry.num_output_tokens
        entry.prompt_cost = 0.0
        entry.num_untold_tokens = entry.num_prefill_tokens = entry.num_favoured_tokens = 0
        entry.num_output_tokens = entry.num_slots = entry.num_favoured_slots = 0
        entry.has_begun = entry.is_leaving = False

    def _forget_prompt(self, entry: Entry) -> None:
        """Its part of what has been computed, and is, of prompts that were not told of."""
        if entry.num_prefill_tokens == 0:
            return
        share = entry.num_prefill_tokens / self.load.num_prefill_tokens
        self._num_prefilled -= round(share * self._num_prefilled)
        if self._num_computing is not None:
            self._num_computing -= round(share * self._num_computing)

    def engine_changed(self) -> None:
        """Nothing has been computed by this one."""
        self._num_prefilled = 0
        self._num_computing = None

    def step_ended(self, num_prefilled_tokens: int) -> None:
        """The engine has computed so many prompt tokens; of whose, is told later. It goes on with all that is there."""
        self._num_prefilled = min(self._num_prefilled + num_prefilled_tokens, self.load.num_prefill_tokens)
        self._num_computing = self.load.num_prefill_tokens - self._num_prefilled

    def began(self, entry: Entry, num_computed_tokens: int, num_cached_tokens: int) -> None:
        """Charge a prompt as it was, instead of as it was estimated."""
        num_tokens = num_computed_tokens + num_cached_tokens
        is_whole = num_tokens >= entry.num_untold_tokens or not _is_counted(entry)
        share = 1.0 if is_whole else num_tokens / entry.num_untold_tokens
        estimated = share * entry.prompt_cost
        cost = self._weights.cost(num_computed_tokens, num_cached_tokens, 0)
        entry.flow.charge(cost - estimated)
        entry.prompt_cost -= estimated
        entry.num_untold_tokens -= entry.num_untold_tokens if is_whole else num_tokens
        num_freed = entry.num_prefill_tokens if is_whole else int(share * entry.num_prefill_tokens)
        self.load.num_prompts -= 0 < num_freed == entry.num_prefill_tokens
        entry.num_prefill_tokens -= num_freed
        self.load.num_prefill_tokens -= num_freed
        entry.tenant.num_prefill_tokens -= num_freed
        if is_whole:
            self.load.num_favoured_tokens -= entry.num_favoured_tokens
            entry.num_favoured_tokens = 0
        self._num_prefilled = max(0, self._num_prefilled - num_computed_tokens)
        entry.has_begun = True
        entry.tenant.served_cost += cost
        self._prompt_cost += cost

    def generated(self, ticket: TicketId, num_tokens: int) -> None:
        """Charge output. Called for every token of every request."""
        entry = self.entries.get(ticket)
        if entry is None:
            return
        flow = entry.flow
        entry.num_output_tokens += num_tokens
        flow.tenant.num_output_tokens += num_tokens
        self._num_output_tokens += num_tokens
        self.load.num_tokens += num_tokens
        amount = num_tokens * entry.token_price
        for charged in flow.charged:
            charged.virtual_tokens += amount

    def preemptible(self) -> list[Entry]:
        """Batch requests that may be thrown out, newest last."""
        return [
            entry
            for entry in self.entries.values()
            if entry.arrival.service_class is ServiceClass.BATCH
            and entry.arrival.can_restart
            and entry.num_preemptions < MOST_PREEMPTIONS
            and not entry.is_leaving
        ]


def held_by(entry: Entry) -> Load:
    """What a request that runs takes of the engine."""
    num_tokens = entry.num_prompt_tokens + entry.num_output_tokens
    return Load(
        num_requests=1,
        num_slots=entry.num_slots,
        num_favoured_slots=entry.num_favoured_slots,
        num_prompts=entry.num_prefill_tokens > 0,
        num_prefill_tokens=entry.num_prefill_tokens,
        num_favoured_tokens=entry.num_favoured_tokens,
        num_tokens=num_tokens,
    )


def _is_counted(entry: Entry) -> bool:
    return entry.demand is not None and entry.demand.num_prompt_tokens is not None
