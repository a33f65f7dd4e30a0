"""The synthetic engine's steps: continuous batching after vLLM's, in a time that is a formula, on any clock.

One step at a time. It serves what runs, in the order in which that was let in: a token of every sequence that decodes,
and of prompts as much as the token budget leaves. What is left goes to those that wait, the most urgent first, then the
first that came. No prompt takes more than half of a step unless it is alone. Where tokens no longer fit in memory, the
least urgent that runs, of those the newest, gives its place up and computes everything again later.

A step takes `base + per_sequence · sequences that decode + per_token · prompt tokens`. One task, which lives while
there is work, owns the batch; `Job`s are added and leave at any time, and are seen at the next step.
"""

import asyncio
import math
from bisect import insort
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace

from headrace_server.domain import EngineStats
from headrace_server.engine.base import longest_chunk
from headrace_server.engine.synthetic_generation import Sleep, Work
from headrace_server.engine.synthetic_prefix_cache import Prefixes
from headrace_server.errors import EngineDied


@dataclass(frozen=True, slots=True)
class StepModel:
    """How long steps take, in seconds, and what fits in one: sequences, tokens, tokens in memory."""

    base_seconds: float
    seconds_per_sequence: float
    seconds_per_token: float
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_tokens: float = math.inf

    def seconds(self, num_sequences: int, num_prompt_tokens: int) -> float:
        """Of a step."""
        return (
            self.base_seconds + self.seconds_per_sequence * num_sequences + self.seconds_per_token * num_prompt_tokens
        )


class Job:
    """One request's `Place` in the steps. `rank`: its urgency, the lowest first. `prefixes`: how its prompts begin;
    None: they are not looked up."""

    def __init__(self, steps: "Steps", work: Work, rank: int, prefixes: Prefixes | None = None) -> None:
        self._steps = steps
        self._work = work
        self._prefixes = prefixes
        self._num_made = 0
        self._made: deque[int] = deque()
        self._news = asyncio.Event()
        self._cached = [0] * len(work.prompt_lengths)
        self.order = (rank, steps.next_number())
        self.num_kept = 0
        self.num_to_prefill = work.num_prompt_tokens
        self.is_known = False
        self.is_over = False

    @property
    def num_sequences(self) -> int:
        """Those that have not ended."""
        return max(1, self._work.widths[self._num_made]) if not self.is_done else 0

    @property
    def is_done(self) -> bool:
        return self._num_made == len(self._work.widths)

    async def step(self) -> int | None:
        """See `Place.step`."""
        self._steps.add(self)
        while not self._made:
            if self.is_over:
                self._steps.check_open()
                return None
            self._news.clear()
            await self._news.wait()
        return self._made.popleft()

    def leave(self) -> None:
        """See `Place.leave`."""
        self._steps.drop(self)

    def end(self) -> None:
        """Nothing more will be made."""
        self.is_over = True
        self._news.set()

    def look_up(self) -> None:
        """It is let in: what is at hand of its prompts need not be computed."""
        if self._prefixes is not None and self._num_made == 0:
            self._cached = self._prefixes.num_cached()
            self.num_to_prefill -= sum(self._cached)
            self.num_kept = sum(self._cached)

    def start_again(self) -> None:
        """It has lost its place in memory, and with it everything that was computed."""
        self.num_to_prefill = self._work.num_prompt_tokens + sum(self._work.widths[: self._num_made])
        self.num_kept = 0

    def advance(self, num_tokens: int) -> None:
        """So many tokens have been computed."""
        self.num_kept += num_tokens
        if self.num_to_prefill > num_tokens:
            self.num_to_prefill -= num_tokens
            return
        self.num_to_prefill = 0
        if self._num_made == 0:
            self._work.account.began(self._work.prompt_lengths, self._cached)
            if self._prefixes is not None:
                self._prefixes.keep()
        num_made = self._work.widths[self._num_made]
        self._num_made += 1
        self._work.account.generated(num_made)
        self._made.append(num_made)
        self._news.set()


@dataclass(slots=True)
class _Step:
    """A step as it is put together: tokens of each job, and what is left of the budget and of the memory."""

    num_tokens_left: int
    room_left: float
    chunks: dict[Job, int] = field(default_factory=dict)

    def take(self, job: Job, num_tokens: int) -> None:
        self.chunks[job] = num_tokens
        self.num_tokens_left -= num_tokens
        self.room_left -= num_tokens

    def give_up(self, job: Job) -> None:
        """A job loses its part of the step, and its place in memory."""
        num_tokens = self.chunks.pop(job, 0)
        self.num_tokens_left += num_tokens
        self.room_left += num_tokens + job.num_kept
        job.start_again()


class Steps:
    """The batch. `model` says what a step takes and holds."""

    def __init__(self, model: StepModel, sleep: Sleep) -> None:
        self._model = model
        self._sleep = sleep
        self._running: dict[Job, None] = {}
        self._waiting: list[Job] = []  # in their order
        self._task: asyncio.Task[None] | None = None
        self._stats = EngineStats()
        self._num_jobs = 0
        self._is_closed = False

    def next_number(self) -> int:
        """For the order in which jobs came."""
        self._num_jobs += 1
        return self._num_jobs

    def add(self, job: Job) -> None:
        """A job waits from now on; a second call does nothing.

        Raises:
            EngineDied: the engine is closed.
        """
        if job.is_known or job.is_over:
            return
        self.check_open()
        job.is_known = True
        insort(self._waiting, job, key=_order)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="synthetic-steps")

    def drop(self, job: Job) -> None:
        """A job is over. What the current step does for it is lost."""
        job.end()
        self._running.pop(job, None)
        if job in self._waiting:
            self._waiting.remove(job)

    def check_open(self) -> None:
        """Raise EngineDied if the engine is closed."""
        if self._is_closed:
            raise EngineDied("the engine of this model has stopped")

    def stats(self) -> EngineStats:
        """Steps and what was in them; sequences that run and wait. Tokens are counted elsewhere."""
        model, num_running = self._model, self._num_sequences()
        is_bounded = model.kv_cache_tokens < math.inf
        return replace(
            self._stats,
            num_requests_running=num_running,
            num_requests_waiting=sum(job.num_sequences for job in self._waiting),
            kv_cache_usage=self._num_kept() / model.kv_cache_tokens if is_bounded else num_running / model.max_num_seqs,
        )

    def _num_sequences(self) -> int:
        return sum(job.num_sequences for job in self._running)

    def _num_kept(self) -> int:
        return sum(job.num_kept for job in self._running)

    async def close(self) -> None:
        """End every job, and the task."""
        self._is_closed = True
        for job in (*self._running, *self._waiting):
            self.drop(job)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while self._running or self._waiting:
            chunks = self._scheduled()
            num_decoding = sum(num_tokens for job, num_tokens in chunks.items() if job.num_to_prefill == 0)
            num_prompt_tokens = sum(chunks.values()) - num_decoding
            seconds = self._model.seconds(num_decoding, num_prompt_tokens)
            await self._sleep(seconds)
            self._count(seconds, num_decoding, num_prompt_tokens)
            for job, num_tokens in chunks.items():
                self._advance(job, num_tokens)

    def _advance(self, job: Job, num_tokens: int) -> None:
        if not job.is_over:
            job.advance(num_tokens)
            if job.is_done:
                del self._running[job]

    def _count(self, seconds: float, num_decoding: int, num_prompt_tokens: int) -> None:
        stats = self._stats
        self._stats = replace(
            stats,
            num_steps_total=stats.num_steps_total + 1,
            step_seconds_total=stats.step_seconds_total + seconds,
            prefill_tokens_total=stats.prefill_tokens_total + num_prompt_tokens,
            decode_tokens_total=stats.decode_tokens_total + num_decoding,
        )

    def _scheduled(self) -> dict[Job, int]:
        """The next step: tokens of each job that is in it."""
        model = self._model
        step = _Step(model.max_num_batched_tokens, model.kv_cache_tokens - self._num_kept())
        num_running = len(self._running)
        for job in tuple(self._running):
            num_tokens = self._due(job, step)
            if job in self._running and num_tokens and self._made_room(job, num_tokens, step):
                step.take(job, num_tokens)
        if len(self._running) == num_running:  # nobody had to give way
            self._let_in(step)
        return step.chunks

    def _due(self, job: Job, step: _Step) -> int:
        """Tokens of a job that the step has room for; sequences that decode are served together or not at all."""
        budget = self._model.max_num_batched_tokens
        if job.num_to_prefill == 0:
            num_tokens = min(job.num_sequences, budget)
            return num_tokens if num_tokens <= step.num_tokens_left else 0
        is_alone = len(self._running) + len(self._waiting) == 1
        longest = budget if is_alone else longest_chunk(budget)
        return min(job.num_to_prefill, longest, step.num_tokens_left)

    def _made_room(self, job: Job, num_tokens: int, step: _Step) -> bool:
        """Whether the tokens fit in memory, if need be in the place of the least urgent job, of those the newest."""
        while num_tokens > step.room_left:
            last = max(self._running, key=_order)
            del self._running[last]
            insort(self._waiting, last, key=_order)
            step.give_up(last)
            self._stats = replace(self._stats, num_preemptions_total=self._stats.num_preemptions_total + 1)
            if last is job:
                return False
        return True

    def _let_in(self, step: _Step) -> None:
        """Those that wait, in their order, until one has to wait on."""
        num_sequences = self._num_sequences()
        while self._waiting:
            job = self._waiting[0]
            num_sequences += job.num_sequences
            if self._running and num_sequences > self._model.max_num_seqs:
                return
            job.look_up()
            num_tokens = self._due(job, step)
            if num_tokens == 0 or num_tokens + job.num_kept > step.room_left:
                job.start_again()
                return
            self._running[self._waiting.pop(0)] = None
            step.room_left -= job.num_kept
            step.take(job, num_tokens)


def _order(job: Job) -> tuple[int, int]:
    return job.order
