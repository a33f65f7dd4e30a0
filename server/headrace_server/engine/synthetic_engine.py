"""An engine without weights that answers every operation in the shapes of the real one.

For tests, load tests and clusters without accelerators. Deterministic: equal payloads and seeds give equal answers,
made of words from a small vocabulary. Its speed is what its arguments say, its counters are exact, and it fails when
told to. A request without a token limit ends by itself after 16 tokens; requests for JSON or a tool call get an
instance of the schema. Reads no files, opens no sockets; starts one task, and only where it works in steps.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat

from headrace_server.domain import (
    GENERATING,
    POOLING,
    Demand,
    EngineCapacity,
    EngineReply,
    EngineRequest,
    EngineStats,
    JsonObject,
    Operation,
    Seat,
    StreamReply,
    UnaryReply,
)
from headrace_server.engine.base import EngineInfo, EngineSpec, longest_chunk, urgency
from headrace_server.engine.synthetic_dialect import Dialect, Envelope, encode, step_frames
from headrace_server.engine.synthetic_generation import Account, Item, Pace, PacedPlace, Place, Run, Sleep, Totals, Work
from headrace_server.engine.synthetic_messages import MessageDialect
from headrace_server.engine.synthetic_options import options_of
from headrace_server.engine.synthetic_payloads import Message, read
from headrace_server.engine.synthetic_plan import Plan, bounded_tokens, plan_of
from headrace_server.engine.synthetic_pooling import pooled, pooling_task
from headrace_server.engine.synthetic_prefix_cache import PrefixCache, Prefixes
from headrace_server.engine.synthetic_responses import ResponseDialect
from headrace_server.engine.synthetic_slots import Slots
from headrace_server.engine.synthetic_steps import Job, Steps
from headrace_server.engine.synthetic_task import rendered, task_of
from headrace_server.engine.synthetic_text import step_deltas
from headrace_server.engine.synthetic_vocabulary import join, split, token_id
from headrace_server.errors import EngineDied, InvalidRequest
from headrace_server.generation import Generation

_DIALECTS: dict[Operation, Callable[[Plan, Envelope], Dialect]] = {
    Operation.RESPONSE: ResponseDialect,
    Operation.MESSAGE: MessageDialect,
}


@dataclass(frozen=True, slots=True)
class _TokenizePayload:
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    return_token_strs: bool | None = None


@dataclass(frozen=True, slots=True)
class _DetokenizePayload:
    tokens: tuple[int, ...]


class SyntheticEngine:
    """See `engine.base.Engine` for the contract and `SyntheticOptions` for the arguments.

    `sleep` makes all delays, in seconds, and gives way to other tasks when asked for 0; `now` is the wall clock that
    stamps replies.
    """

    def __init__(self, spec: EngineSpec, *, sleep: Sleep = asyncio.sleep, now: Callable[[], float] = time.time) -> None:
        self._options = options_of(spec)
        self._sleep = sleep
        self._now = now
        self._pace = Pace(self._options.ttft_seconds, self._options.itl_seconds, sleep)
        self._slots = Slots(self._options.max_num_seqs)
        model = self._options.step_model
        self._steps = None if model is None else Steps(model, sleep)
        self._prefix_cache = PrefixCache() if self._options.prefix_caching else None
        self._totals = Totals()
        self._is_serving = False

    async def start(self) -> EngineInfo:
        """See `Engine.start`; takes `load_seconds`."""
        await self._sleep(self._options.load_seconds)
        self._is_serving = True
        options = self._options
        return EngineInfo(frozenset(Operation), options.max_model_len, options.memory_bytes, self._capacity())

    def _capacity(self) -> EngineCapacity:
        options = self._options
        if self._steps is None:
            return EngineCapacity(options.max_num_seqs)
        step_tokens = options.max_num_batched_tokens
        return EngineCapacity(options.max_num_seqs, step_tokens, options.kv_cache_tokens, longest_chunk(step_tokens))

    async def submit(self, request: EngineRequest, seat: Seat) -> EngineReply:
        """See `Engine.submit`. A stream waits for its slot when its first item is asked for."""
        await self.check()
        if request.operation in GENERATING:
            return await self._generate(request, seat)
        if request.operation in POOLING:
            return await self._pool(request, seat)
        body = encode(self._token_work(request))
        await seat.take(Demand(0, 0))
        return UnaryReply(body)

    async def _generate(self, request: EngineRequest, seat: Seat) -> EngineReply:
        plan = self._plan(request)
        await seat.take(Demand(plan.num_prompt_tokens, plan.num_generation_tokens, len(plan.choices)))
        place = self._place(plan, request, seat)
        if request.operation in _DIALECTS:
            dialect = _DIALECTS[request.operation](plan, self._envelope(request))
            return await self._written(plan, dialect, place, stream=request.stream)
        return Generation(
            self._run(plan, step_deltas(plan, request.request_id), place),
            prompt_lengths=plan.prompt_lengths,
            num_choices=len(plan.choices),
            fingerprint="synthetic",
        )

    def _plan(self, request: EngineRequest) -> Plan:
        options = self._options
        plan = plan_of(task_of(request), engine_seed=options.seed, max_model_len=options.max_model_len)
        self._check_memory(plan.num_prompt_tokens + plan.num_generation_tokens)
        return plan

    def _check_memory(self, num_tokens: int) -> None:
        size = self._options.kv_cache_tokens
        if self._steps is not None and size is not None and num_tokens > size:
            raise InvalidRequest(f"the request needs {num_tokens} tokens of memory; this model has {size}")

    def _place(self, plan: Plan, request: EngineRequest, seat: Seat) -> Place:
        work = Work(plan.prompt_lengths, tuple(plan.tokens_per_step()), Account(seat, self._totals))
        cache = self._prefix_cache
        prefixes = None if cache is None else Prefixes(cache, [*map(split, plan.task.prompts)], request.cache_salt)
        return self._place_for(work, urgency(request, seat), prefixes)

    def _place_for(self, work: Work, rank: int, prefixes: Prefixes | None = None) -> Place:
        if self._steps is None:
            return PacedPlace(work, self._slots, self._pace)
        return Job(self._steps, work, rank, prefixes)

    async def _written(self, plan: Plan, dialect: Dialect, place: Place, *, stream: bool) -> EngineReply:
        if stream:
            return StreamReply(self._run(plan, step_frames(dialect, plan), place))
        async for _ in self._run(plan, repeat(None, plan.num_steps), place):
            pass
        return UnaryReply(dialect.document())

    def _run(self, plan: Plan, items: Iterator[Item], place: Place) -> Run[Item]:
        return Run(plan, items, place, fail_after_tokens=self._options.fail_after_tokens)

    def _envelope(self, request: EngineRequest) -> Envelope:
        return Envelope(request.request_id, request.model, int(self._now()), request.payload)

    async def _pool(self, request: EngineRequest, seat: Seat) -> EngineReply:
        task = pooling_task(request, self._options.max_model_len)
        self._check_memory(task.num_prompt_tokens)
        await seat.take(Demand(task.num_prompt_tokens, 0))
        work = Work((task.num_prompt_tokens,), (0,), Account(seat, self._totals))
        place = self._place_for(work, urgency(request, seat))
        try:
            await place.step()
            return UnaryReply(await pooled(task, self._envelope(request), self._give_way))
        finally:
            place.leave()

    async def _give_way(self) -> None:
        await self._sleep(0)

    def _token_work(self, request: EngineRequest) -> dict[str, object]:
        match request.operation:
            case Operation.COUNT_TOKENS:
                prompt = task_of(request).prompts[0]
                return {"input_tokens": len(bounded_tokens(prompt, self._options.max_model_len))}
            case Operation.TOKENIZE:
                return self._tokenized(request.payload)
            case _:
                return {"prompt": join(read(request.payload, _DetokenizePayload).tokens)}

    def _tokenized(self, payload: JsonObject) -> dict[str, object]:
        asked = read(payload, _TokenizePayload)
        prompt = rendered(asked.messages) if asked.messages is not None else asked.prompt
        if prompt is None:
            raise InvalidRequest("send either prompt or messages", param="prompt")
        pieces = bounded_tokens(prompt, self._options.max_model_len)
        return {
            "count": len(pieces),
            "max_model_len": self._options.max_model_len,
            "tokens": [token_id(piece) for piece in pieces],
            "token_strs": pieces if asked.return_token_strs else None,
        }

    def stats(self) -> EngineStats:
        """See `Engine.stats`; the counters are exact."""
        return replace(
            self._paced_stats() if self._steps is None else self._steps.stats(),
            prompt_tokens_total=self._totals.num_prompt_tokens,
            generation_tokens_total=self._totals.num_generation_tokens,
        )

    def _paced_stats(self) -> EngineStats:
        return EngineStats(
            num_requests_running=self._slots.num_running,
            num_requests_waiting=self._slots.num_waiting,
            kv_cache_usage=self._slots.num_running / self._options.max_num_seqs,
        )

    async def check(self) -> None:
        """See `Engine.check`."""
        if not self._is_serving:
            raise EngineDied("the engine of this model is not running")

    async def heartbeat(self) -> None:
        """See `Engine.heartbeat`; nothing here can hang."""
        await self.check()

    async def close(self) -> None:
        """See `Engine.close`."""
        self._is_serving = False
        self._slots.close()
        if self._steps is not None:
            await self._steps.close()
