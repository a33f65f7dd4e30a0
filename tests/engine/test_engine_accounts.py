"""What vLLM says of its steps, and what requests' seats hear of them; priorities, salts and aborts on the real engine.

The engines run in this process, as in a server. The module's fixture does everything in one event loop, engine after
engine, and closes them before the first test looks.
"""

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from headrace_models import parse_reference, prepare
from headrace_server.domain import EngineRequest, EngineStats, Operation, RequestId, ServiceClass
from headrace_server.engine.base import Engine, EngineInfo, EngineSpec
from headrace_server.engine.vllm_engine import VllmEngine
from headrace_server.generation import Generation
from headrace_server.settings.schema import DEFAULT_MODEL, CacheSettings
from tests.engine.differential.engines import engine_environment
from tests.fakes.engine_requests import MODEL, OpenSeat, engine_request
from tests.fakes.virtual_loop import until

pytestmark = pytest.mark.filterwarnings("ignore")  # importing vLLM warns about itself

EMBED = "embedded:all-minilm-l6-v2"
HELLO = [{"role": "user", "content": "What is the capital of France?"}]
MAX_TOKENS = 6
GENERATING: dict[Operation, dict[str, object]] = {
    Operation.CHAT: {"messages": HELLO, "max_tokens": MAX_TOKENS},
    Operation.COMPLETION: {"prompt": ["The mill", "The river"], "max_tokens": MAX_TOKENS, "n": 2, "temperature": 0.8},
    Operation.RESPONSE: {"input": "Where is the mill?", "max_output_tokens": MAX_TOKENS},
    Operation.MESSAGE: {"messages": HELLO, "max_tokens": MAX_TOKENS},
}
POOLING: dict[Operation, dict[str, object]] = {
    Operation.EMBEDDING: {"input": ["the mill", "the river by the mill"]},
    Operation.RERANK: {"query": "mill", "documents": ["the mill", "a bicycle"]},
    Operation.SCORE: {"text_1": "mill", "text_2": ["the mill", "a bicycle"]},
}


@dataclass(slots=True)
class Seen:
    """What the engines did, for the tests to look at."""

    info: EngineInfo = field(default_factory=lambda: EngineInfo(frozenset()))
    embed_info: EngineInfo = field(default_factory=lambda: EngineInfo(frozenset()))
    accounts: dict[str, tuple[OpenSeat, EngineStats]] = field(default_factory=dict)
    salts: list[tuple[str | None, tuple[int, int]]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    seeded: list[str] = field(default_factory=list)
    told_before_the_answer: int = 0
    steps_after_leaving: dict[str, int] = field(default_factory=dict)
    idle_seconds: float = 0.0
    step_seconds: float = 0.0
    num_preemptions: int = 0
    num_computed_again: int = 0
    loggers: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    """Everything, once."""
    with engine_environment() as scratch:
        yield asyncio.run(_seen(scratch))
        gc.collect()


async def _seen(scratch: Path) -> Seen:
    seen = Seen()
    async with started(DEFAULT_MODEL, scratch, max_num_seqs=4, max_model_len=1024, kv_cache_memory_bytes=2**26) as (
        engine,
        seen.info,
    ):
        seen.loggers = [type(logger).__name__ for logger in engine._llm.logger_manager.stat_loggers]  # type: ignore[attr-defined]
        for operation, payload in GENERATING.items():
            for stream in (False, True):
                request = engine_request(operation, payload, stream=stream)
                seen.accounts[f"{operation.name} {stream}"] = await accounted(engine, request)
        await _try_salts(engine, seen)
        await _try_priorities(engine, seen)
        await _try_seeds(engine, seen)
        await _try_leaving(engine, seen)
        await _try_preemption(engine, seen)
    async with started(EMBED, scratch, runner="pooling") as (engine, seen.embed_info):
        for operation, payload in POOLING.items():
            seen.accounts[operation.name] = await accounted(engine, engine_request(operation, payload))
    return seen


@asynccontextmanager
async def started(reference: str, scratch: Path, **arguments: object) -> AsyncIterator[tuple[Engine, EngineInfo]]:
    prepared = prepare(parse_reference(reference), CacheSettings().dir.expanduser())
    engine = VllmEngine(EngineSpec(MODEL, "vllm", prepared.directory, arguments=arguments, scratch=scratch))
    try:
        yield engine, await engine.start()
    finally:
        await engine.close()


async def served(engine: Engine, request: EngineRequest, seat: OpenSeat) -> None:
    """Ask, and read whatever comes."""
    reply: Any = await engine.submit(request, seat)
    if isinstance(reply, Generation) or request.stream:
        async for _ in reply.deltas if isinstance(reply, Generation) else reply.events:
            pass


async def until_idle(engine: Engine) -> EngineStats:
    """The counters of the last step come after its tokens."""
    await until(lambda: engine.stats().num_requests_running == 0, every_seconds=0.005)
    return engine.stats()


async def accounted(engine: Engine, request: EngineRequest) -> tuple[OpenSeat, EngineStats]:
    """One request's seat, and what it has added to the counters that count tokens."""
    before, seat = await until_idle(engine), OpenSeat()
    await served(engine, request, seat)
    after = await until_idle(engine)
    return seat, replace(
        after,
        prompt_tokens_total=after.prompt_tokens_total - before.prompt_tokens_total,
        generation_tokens_total=after.generation_tokens_total - before.generation_tokens_total,
        prefill_tokens_total=after.prefill_tokens_total - before.prefill_tokens_total,
        decode_tokens_total=after.decode_tokens_total - before.decode_tokens_total,
    )


def completion(
    num_prompt_tokens: int, num_output_tokens: int, name: str = "r", *, stream: bool = False, **more: Any
) -> EngineRequest:
    """Random tokens in, so many tokens out, whatever they are."""
    dice = random.Random(name)
    prompt = [dice.randrange(100, 40_000) for _ in range(num_prompt_tokens)]
    payload = {"prompt": prompt, "max_tokens": num_output_tokens, "ignore_eos": True}
    request = engine_request(Operation.COMPLETION, payload, stream=stream)
    return replace(request, request_id=RequestId(name), **more)


async def _try_salts(engine: Engine, seen: Seen) -> None:
    for salt in ("a", "a", "b", None, None, "b"):
        seat = OpenSeat()
        await served(engine, completion(300, 1, cache_salt=salt), seat)
        seen.salts.append((salt, seat.prompts[0]))


async def _try_priorities(engine: Engine, seen: Seen) -> None:
    async def run(name: str, num_tokens: int, service_class: ServiceClass) -> None:
        await served(engine, completion(20, num_tokens, name, service_class=service_class), OpenSeat())
        seen.order.append(name)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(run(f"running {number}", 30 + number, ServiceClass.STANDARD))
        await until(lambda: engine.stats().num_requests_running == 4, every_seconds=0.005)
        for service_class in (ServiceClass.BATCH, ServiceClass.STANDARD, ServiceClass.INTERACTIVE):
            group.create_task(run(service_class.value, 25, service_class))


async def _try_seeds(engine: Engine, seen: Seen) -> None:
    """Prompts of three steps, of which nothing is at hand."""
    for seed, salt in ((7, "c"), (7, "d"), (8, "e")):
        asked = completion(700, 24, cache_salt=salt)
        payload = {**asked.payload, "seed": seed, "temperature": 1.0}
        reply: Any = await engine.submit(replace(asked, payload=payload), OpenSeat())
        seen.seeded.append("".join([delta.text async for step in reply.deltas for delta in step]))


async def _try_leaving(engine: Engine, seen: Seen) -> None:
    """A reader who closes its stream, and a caller who is cancelled."""
    await until_idle(engine)
    generation: Any = await engine.submit(completion(20, 900, "stream", stream=True), OpenSeat())
    await anext(generation.deltas)
    await generation.deltas.aclose()
    seen.steps_after_leaving["stream"] = await _steps_until_idle(engine)
    seat = OpenSeat()
    message = engine_request(Operation.MESSAGE, {"messages": HELLO, "max_tokens": 900})
    unary = asyncio.create_task(engine.submit(message, seat))
    await until(lambda: seat.num_generated >= 3, every_seconds=0.005)
    seen.told_before_the_answer = 0 if unary.done() else seat.num_generated
    unary.cancel()
    await asyncio.gather(unary, return_exceptions=True)
    seen.steps_after_leaving["unary"] = await _steps_until_idle(engine)
    await asyncio.sleep(0.3)  # for which nothing may be charged to a step
    before, began = engine.stats().step_seconds_total, time.monotonic()
    await asyncio.sleep(1.0)
    await served(engine, completion(5, 3, "after"), OpenSeat())
    seen.idle_seconds = time.monotonic() - began
    seen.step_seconds = (await until_idle(engine)).step_seconds_total - before


async def _steps_until_idle(engine: Engine) -> int:
    num_steps = engine.stats().num_steps_total
    async with asyncio.timeout(10):
        return (await until_idle(engine)).num_steps_total - num_steps


async def _try_preemption(engine: Engine, seen: Seen) -> None:
    """Three sequences that fit in memory until they have grown."""
    before = await until_idle(engine)
    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(served(engine, completion(890, 12, f"large {number}"), OpenSeat()))
    after = await until_idle(engine)
    seen.num_preemptions = after.num_preemptions_total - before.num_preemptions_total
    seen.num_computed_again = after.prefill_tokens_total - before.prefill_tokens_total - 3 * 890


NAMES = [*(f"{operation.name} {stream}" for operation in GENERATING for stream in (False, True))]


@pytest.mark.parametrize("name", NAMES)
def test_a_generations_seat_hears_what_the_steps_held(seen: Seen, name: str) -> None:
    seat, stats = seen.accounts[name]
    assert sum(map(sum, seat.prompts)) == stats.prompt_tokens_total > 0
    assert sum(computed for computed, _ in seat.prompts) == stats.prefill_tokens_total
    assert seat.num_generated == stats.generation_tokens_total > 0
    assert seat.num_generated == stats.decode_tokens_total + seat.demands[0].num_sequences
    assert seat.num_generated <= (seat.demands[0].max_output_tokens or 0)


@pytest.mark.parametrize("operation", POOLING, ids=lambda operation: operation.name)
def test_a_pooling_requests_seat_hears_of_every_text(seen: Seen, operation: Operation) -> None:
    seat, stats = seen.accounts[operation.name]
    assert len(seat.prompts) == (2 if operation is Operation.EMBEDDING else 3)
    assert sum(map(sum, seat.prompts)) == stats.prompt_tokens_total == stats.prefill_tokens_total > 0
    assert seat.num_generated == stats.generation_tokens_total == 0


def test_only_equal_salts_share_what_was_computed(seen: Seen) -> None:
    shared = [(salt, cached > 0) for salt, (_, cached) in seen.salts]
    assert shared == [("a", False), ("a", True), ("b", False), (None, False), (None, True), ("b", True)]
    assert {computed + cached for _, (computed, cached) in seen.salts} == {300}


def test_the_more_urgent_class_overtakes(seen: Seen) -> None:
    classes = {service_class.value for service_class in ServiceClass}
    assert [name for name in seen.order if name in classes] == ["interactive", "standard", "batch"]


def test_a_seed_means_the_same_however_many_steps_the_prompt_takes(seen: Seen) -> None:
    first, again, other = seen.seeded
    assert first == again != other


@pytest.mark.parametrize("kind", ["stream", "unary"])
def test_who_leaves_is_out_of_the_engine_within_a_step(seen: Seen, kind: str) -> None:
    """The step under way, and the one that was begun before the word reached the engine."""
    assert seen.steps_after_leaving[kind] <= 2


def test_an_answer_in_one_piece_is_charged_while_it_grows(seen: Seen) -> None:
    assert seen.told_before_the_answer >= 3


def test_no_idle_time_counts_as_a_step(seen: Seen) -> None:
    assert 0 < seen.step_seconds < seen.idle_seconds - 0.9


def test_a_preemption_is_counted_and_computing_again_is_prefill(seen: Seen) -> None:
    assert seen.num_preemptions >= 1
    assert seen.num_computed_again > 0


def test_the_capacity_is_the_engines_own(seen: Seen) -> None:
    capacity = seen.info.capacity
    assert (capacity.max_num_seqs, capacity.max_num_batched_tokens) == (4, 256)
    assert capacity.kv_cache_tokens is not None
    assert 2_000 < capacity.kv_cache_tokens < 4_000
    assert seen.embed_info.capacity.max_num_seqs is not None


def test_the_only_listener_to_steps_is_ours(seen: Seen) -> None:
    assert seen.loggers == ["StepLogger"]
