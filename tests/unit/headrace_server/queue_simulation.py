"""What the tests of the queue policies share: an engine that batches continuously, and requests, on a clock of its own.

The engine is a model of vLLM's: one step at a time takes `a + b · decoding sequences + c · prompt tokens` seconds; in
each step every sequence gets a token, and what the step's token budget leaves goes to prompts, by rank and then by
arrival. A step begins as soon as the last one has ended, before anybody who is told of the last one's tokens can react.
When the KV cache is full the sequence that came last is put back and computed again.

`Simulation` obeys a policy to the letter and fails where the policy contradicts itself.
"""

import heapq
from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from operator import attrgetter
from random import Random

from headrace_server.domain import Demand, EngineCapacity, EngineStats, ServiceClass, Tenant, TenantId
from headrace_server.queueing import Arrival, Decisions, Outlook, QueuePolicy, QueueView, Refusal, TicketId


@dataclass(frozen=True, slots=True)
class EngineModel:
    """`a`, `b` and `c` in seconds; see the module. `longest_chunk`: of one prompt in a step."""

    a: float = 0.0165
    b: float = 0.001
    c: float = 0.0002
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    kv_cache_tokens: int = 1_000_000
    longest_chunk: int | None = None
    tells_steps: bool = True
    tells_capacity: bool = True

    @property
    def full_step_seconds(self) -> float:
        """Of a step whose budget of prompt tokens is used up, with all sequences."""
        return self.a + self.b * self.max_num_seqs + self.c * self.max_num_batched_tokens

    @property
    def capacity(self) -> EngineCapacity:
        """What it says of itself."""
        if not self.tells_capacity:
            return EngineCapacity()
        return EngineCapacity(self.max_num_seqs, self.max_num_batched_tokens, self.kv_cache_tokens)


@dataclass(frozen=True, slots=True)
class Job:
    """A request that somebody will send. `stays`: seconds after which its client goes away."""

    at: float
    tenant: str
    num_prompt_tokens: int
    num_output_tokens: int
    service_class: ServiceClass = ServiceClass.STANDARD
    num_cached_tokens: int = 0
    num_sequences: int = 1
    max_output_tokens: int | None = None
    deadline_seconds: float | None = None
    can_restart: bool = False
    num_bytes: int = 1000
    stays: float | None = None


@dataclass(slots=True, eq=False)
class Record:
    """What became of a job; times are None until they come."""

    job: Job
    ticket: TicketId
    arrived: float
    admitted: float | None = None
    began: float | None = None
    finished: float | None = None
    refusal: Refusal | None = None
    refused: float | None = None
    expected_wait: float | None = None
    num_attempts: int = 1
    num_preemptions: int = 0
    is_favoured: bool = False
    num_output_tokens: int = 0
    num_prefilled: int = 0

    @property
    def wait(self) -> float:
        """Seconds in the queue."""
        assert self.admitted is not None
        return self.admitted - self.arrived

    @property
    def ttft(self) -> float:
        """Seconds to its first token."""
        assert self.began is not None
        return self.began - self.arrived


@dataclass(slots=True, eq=False)
class _Sequence:
    """A request in the engine; its choices run as one, each a sequence."""

    record: Record
    order: int
    num_left: int
    num_done: int = 0

    @property
    def rank(self) -> tuple[int, bool, int]:
        return self.record.job.service_class.rank, not self.record.is_favoured, self.order

    @property
    def num_sequences(self) -> int:
        return self.record.job.num_sequences

    @property
    def num_kv_tokens(self) -> int:
        return self.record.job.num_prompt_tokens - self.num_left + self.num_done


_RANK = attrgetter("rank")


class StepEngine:
    """The engine of the module's docstring; whoever drives it says when."""

    def __init__(self, model: EngineModel) -> None:
        self.model = model
        self.stats = EngineStats()
        self.waiting: list[_Sequence] = []
        self.running: list[_Sequence] = []
        self._chunks: list[tuple[_Sequence, int]] = []
        self._order = count()

    def add(self, record: Record) -> None:
        """It will be taken up at the beginning of a step."""
        job = record.job
        sequence = _Sequence(record, next(self._order), job.num_prompt_tokens - job.num_cached_tokens)
        insort(self.waiting, sequence, key=_RANK)

    def remove(self, record: Record) -> None:
        """It is out of the next step."""
        self.waiting = [sequence for sequence in self.waiting if sequence.record is not record]
        self.running = [sequence for sequence in self.running if sequence.record is not record]
        self._chunks = [(sequence, chunk) for sequence, chunk in self._chunks if sequence.record is not record]

    def begin(self) -> float | None:
        """Begin a step: how long it takes; None: there is nothing to do."""
        self._make_room()
        decoding = [sequence for sequence in self.running if sequence.num_left == 0]
        budget = self.model.max_num_batched_tokens - sum(sequence.num_sequences for sequence in decoding)
        self._chunks = [(sequence, 0) for sequence in decoding]
        num_prefilled = 0
        for sequence in [sequence for sequence in self.running if sequence.num_left > 0]:
            num_prefilled += self._take(sequence, budget - num_prefilled)
        while self.waiting and num_prefilled < budget and self._has_room(self.waiting[0]):
            sequence = self.waiting.pop(0)
            self.running.append(sequence)
            num_prefilled += self._take(sequence, budget - num_prefilled)
        if not self._chunks:
            return None
        num_decoding = sum(sequence.num_sequences for sequence in decoding)
        seconds = self.model.a + self.model.b * num_decoding + self.model.c * num_prefilled
        self._count(num_decoding, num_prefilled, seconds)
        return seconds

    def end(self) -> list[tuple[_Sequence, bool]]:
        """End the step: who got a token, and whether it was its first."""
        produced = []
        for sequence, chunk in self._chunks:
            sequence.num_left -= chunk
            if sequence.num_left == 0:
                produced.append((sequence, chunk > 0 and sequence.record.began is None or sequence.num_done == 0))
                sequence.num_done += 1
                if sequence.num_done >= sequence.record.job.num_output_tokens:
                    self.running.remove(sequence)
        self._chunks = []
        return produced

    def _take(self, sequence: _Sequence, budget: int) -> int:
        chunk = max(0, min(budget, self.model.longest_chunk or budget, max(1, sequence.num_left)))
        if chunk > 0:
            self._chunks.append((sequence, min(chunk, sequence.num_left)))
        return min(chunk, sequence.num_left)

    def _has_room(self, sequence: _Sequence) -> bool:
        num_running = sum(other.num_sequences for other in self.running)
        if self.running and num_running + sequence.num_sequences > self.model.max_num_seqs:
            return False
        needed = sequence.record.job.num_prompt_tokens + sequence.num_done
        return self._num_kv_tokens() + needed <= self.model.kv_cache_tokens

    def _make_room(self) -> None:
        while len(self.running) > 1 and self._num_kv_tokens() + len(self.running) > self.model.kv_cache_tokens:
            last = max(self.running, key=_RANK)
            self.running.remove(last)
            last.num_left = last.record.job.num_prompt_tokens + last.num_done
            insort(self.waiting, last, key=_RANK)
            self.stats = replace(self.stats, num_preemptions_total=self.stats.num_preemptions_total + 1)

    def _num_kv_tokens(self) -> int:
        return sum(sequence.record.job.num_prompt_tokens + sequence.num_done for sequence in self.running)

    def _count(self, num_decoding: int, num_prefilled: int, seconds: float) -> None:
        stats = self.stats
        if not self.model.tells_steps:
            return
        self.stats = replace(
            stats,
            num_requests_running=len(self.running),
            num_requests_waiting=len(self.waiting),
            kv_cache_usage=min(1.0, self._num_kv_tokens() / self.model.kv_cache_tokens),
            num_steps_total=stats.num_steps_total + 1,
            step_seconds_total=stats.step_seconds_total + seconds,
            prefill_tokens_total=stats.prefill_tokens_total + num_prefilled,
            decode_tokens_total=stats.decode_tokens_total + num_decoding,
        )


class FirstComeFirstServed:
    """What an engine does by itself: everybody is let in at once, and waits inside. A `QueuePolicy`."""

    def __init__(self) -> None:
        self._joined: list[TicketId] = []

    def engine_changed(self, capacity: EngineCapacity, now: float) -> None: ...

    def observe(self, stats: EngineStats, now: float) -> None: ...

    def arrive(self, ticket: TicketId, arrival: Arrival, now: float) -> Refusal | None:
        return None

    def join(self, ticket: TicketId, demand: Demand, now: float) -> Refusal | None:
        self._joined.append(ticket)
        return None

    def requeue(self, ticket: TicketId, now: float) -> None: ...

    def leave(self, ticket: TicketId, now: float) -> None: ...

    def began(self, ticket: TicketId, num_computed_tokens: int, num_cached_tokens: int, now: float) -> None: ...

    def generated(self, ticket: TicketId, num_tokens: int, now: float) -> None: ...

    def decide(self, now: float) -> Decisions:
        admitted, self._joined = self._joined, []
        return Decisions(admit=tuple(admitted))

    def outlook(self, ticket: TicketId, now: float) -> Outlook | None:
        return None

    def view(self, now: float) -> QueueView:
        return QueueView((), (), None, 0, None)


@dataclass(slots=True)
class Simulation:
    """Requests that come to a policy and its engine.

    `retries`: those that are refused come back when they were told to, so many times. `jitter`: the most that is added
    to what they were told, in seconds.

    Attributes:
        records: of all jobs, in order of arrival.
        returned: of those that came again.
        service: (when, tenant, tokens computed of prompts, tokens of output), in order.
    """

    policy: QueuePolicy
    model: EngineModel
    retries: int = 0
    jitter: float = 0.0
    seed: int = 0
    now: float = 0.0
    records: list[Record] = field(default_factory=list)
    returned: list[Record] = field(default_factory=list)
    service: list[tuple[float, str, int, int]] = field(default_factory=list)
    engine: StepEngine = field(init=False)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: "count[int]" = field(default_factory=count)
    _open: dict[TicketId, Record] = field(default_factory=dict)
    _is_stepping: bool = False
    _look_again_at: float | None = None
    _chance: Random = field(init=False)

    def __post_init__(self) -> None:
        self.engine = StepEngine(self.model)
        self._chance = Random(self.seed)
        self.policy.engine_changed(self.model.capacity, 0.0)

    def run(self, jobs: Iterable[Job], until: float = float("inf")) -> list[Record]:
        """All jobs to their ends, or as far as they come by then."""
        for job in jobs:
            self._at(job.at, lambda job=job: self._send(job, 1, job.at))  # type: ignore[misc]
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            action()
        return self.records

    def settle(self) -> None:
        """Ask the policy and do what it says."""
        self.policy.observe(self.engine.stats, self.now)
        decisions = self.policy.decide(self.now)
        for ticket in decisions.admit:
            record = self._open[ticket]
            record.admitted = self.now if record.admitted is None else record.admitted
            record.is_favoured = ticket in decisions.favoured
            self.engine.add(record)
        for ticket, refusal in decisions.refuse:
            record = self._open.pop(ticket)
            record.refusal, record.refused = refusal, self.now
            self.engine.remove(record)
        for ticket in decisions.preempt:
            self._preempt(self._open[ticket])
        when = decisions.look_again_at
        if when is not None and when != self._look_again_at:
            self._look_again_at = when
            self._at(when, self.settle)
        if decisions.preempt:
            self.settle()
        self._step()

    def _send(self, job: Job, attempt: int, first_sent: float) -> None:
        ticket = TicketId(next(self._order))
        record = Record(job, ticket, self.now, num_attempts=attempt)
        deadline = None if job.deadline_seconds is None else first_sent + job.deadline_seconds
        arrival = Arrival(TenantId(job.tenant), job.service_class, job.num_bytes, deadline, job.can_restart)
        self._open[ticket] = record
        (self.records if attempt == 1 else self.returned).append(record)
        refusal = self.policy.arrive(ticket, arrival, self.now) or self.policy.join(ticket, _demand(job), self.now)
        if refusal is not None:
            self.policy.leave(ticket, self.now)
            self._refused(record, refusal)
        else:
            outlook = self.policy.outlook(ticket, self.now)
            record.expected_wait = None if outlook is None else outlook.wait_seconds
            if job.stays is not None:
                self._at(self.now + job.stays, lambda: self._go_away(record))
        self.settle()

    def _refused(self, record: Record, refusal: Refusal) -> None:
        del self._open[record.ticket]
        record.refusal, record.refused = refusal, self.now
        wait = refusal.retry_after_seconds
        if wait is not None and record.num_attempts <= self.retries:
            wait += self.jitter * self._chance.random()
            self._at(self.now + wait, lambda: self._send(record.job, record.num_attempts + 1, record.arrived))

    def _go_away(self, record: Record) -> None:
        if self._open.pop(record.ticket, None) is not None:
            self.engine.remove(record)
            self.policy.leave(record.ticket, self.now)
            self.settle()

    def _preempt(self, record: Record) -> None:
        record.num_preemptions += 1
        record.began = None
        self.engine.remove(record)
        self.policy.requeue(record.ticket, self.now)
        assert self.policy.join(record.ticket, _demand(record.job), self.now) is None

    def _step(self) -> None:
        if not self._is_stepping:
            seconds = self.engine.begin()
            if seconds is not None:
                self._is_stepping = True
                self._at(self.now + seconds, self._end_step)

    def _end_step(self) -> None:
        produced = self.engine.end()
        self._is_stepping = False
        self._step()  # before anybody is told
        for sequence, is_first in produced:
            self._tell(sequence, is_first=is_first)
        self.settle()

    def _tell(self, sequence: _Sequence, *, is_first: bool) -> None:
        record, job = sequence.record, sequence.record.job
        num_computed = 0
        if is_first and record.began is None:
            record.began = self.now
            num_computed = job.num_prompt_tokens - job.num_cached_tokens
            record.num_prefilled += num_computed
            self.policy.began(record.ticket, num_computed, job.num_cached_tokens, self.now)
        self.policy.generated(record.ticket, sequence.num_sequences, self.now)
        self.service.append((self.now, job.tenant, num_computed, sequence.num_sequences))
        record.num_output_tokens += sequence.num_sequences
        if sequence.num_done >= job.num_output_tokens:
            record.finished = self.now
            del self._open[record.ticket]
            self.policy.leave(record.ticket, self.now)

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), action))


def _demand(job: Job) -> Demand:
    return Demand(job.num_prompt_tokens, job.max_output_tokens, job.num_sequences)


def tenants(**weights: float) -> Callable[[TenantId], Tenant]:
    """A `TenantReader`: these weights, and 1 for everybody else."""
    return lambda tenant: Tenant(tenant, weight=weights.get(tenant, 1.0))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of one tenant, Poisson in time, lengths exponential about a mean or as given."""

    tenant: str
    per_second: float
    prompt: int
    output: int
    start: float = 0.0
    end: float = 60.0
    service_class: ServiceClass = ServiceClass.STANDARD
    varies: bool = True

    def jobs(self, seed: int) -> list[Job]:
        """The same for the same seed."""
        chance = Random(f"{self.tenant} {seed}")
        jobs, at = [], self.start
        while (at := at + chance.expovariate(self.per_second)) < self.end:
            jobs.append(Job(at, self.tenant, self._length(chance, self.prompt), self._length(chance, self.output)))
        return [replace(job, service_class=self.service_class) for job in jobs]

    def _length(self, chance: Random, mean: int) -> int:
        return max(1, min(4 * mean, round(chance.expovariate(1 / mean)))) if self.varies else mean


def quantile(values: Iterable[float], share: float) -> float:
    """The least value that so many are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
