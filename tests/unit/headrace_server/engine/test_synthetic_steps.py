"""The synthetic engine in steps, on a virtual clock: what a step holds, what it costs, who is in it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_server.domain import (
    Demand,
    EngineCapacity,
    EngineRequest,
    Operation,
    ServiceClass,
    StreamReply,
)
from headrace_server.engine.base import EngineSpec
from headrace_server.engine.synthetic_engine import SyntheticEngine
from headrace_server.engine.synthetic_prefix_cache import BLOCK_TOKENS, PrefixCache, Prefixes
from headrace_server.errors import EngineDied, InvalidRequest, UsageError
from headrace_server.serving.answer import written
from tests.fakes.engine_requests import MODEL, OpenSeat, engine_request
from tests.fakes.virtual_loop import now, run_virtually, turns, virtually

# A step takes 10 ms, 1 ms more for each sequence that decodes, 0.1 ms more for each token of a prompt.
COSTS = {"step_ms": 10.0, "decode_us_per_sequence": 1000.0, "prefill_us_per_token": 100.0}


@asynccontextmanager
async def stepping(**arguments: object) -> AsyncIterator[SyntheticEngine]:
    """A started engine that works in steps."""
    engine = SyntheticEngine(EngineSpec(MODEL, "synthetic", arguments={**COSTS, **arguments}))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def completion(
    num_prompt_tokens: int, num_output_tokens: int, service_class: ServiceClass = ServiceClass.STANDARD, **more: object
) -> EngineRequest:
    payload = {"prompt": " water" * num_prompt_tokens, "max_tokens": num_output_tokens, **more}
    return replace(engine_request(Operation.COMPLETION, payload), service_class=service_class)


@dataclass(slots=True)
class Asked:
    """A request that is under way: when its first token and its end came, after it was asked for."""

    seat: OpenSeat = field(default_factory=OpenSeat)
    first_seconds: float = -1.0
    seconds: float = -1.0


async def ask(engine: SyntheticEngine, request: EngineRequest, asked: Asked | None = None) -> Asked:
    asked = asked or Asked()
    began = now()
    generation: Any = await engine.submit(request, asked.seat)
    async for _ in generation.deltas:
        if asked.first_seconds < 0:
            asked.first_seconds = now() - began
    asked.seconds = now() - began
    return asked


async def together(*work: Awaitable[Asked]) -> list[Asked]:
    return list(await asyncio.gather(*work))


class TestTime:
    @virtually
    async def test_a_request_alone_takes_its_prompts_step_and_one_for_each_further_token(self) -> None:
        async with stepping() as engine:
            asked = await ask(engine, completion(100, 3))
        assert asked.first_seconds == pytest.approx(0.010 + 100 * 0.0001)
        assert asked.seconds == pytest.approx(0.020 + 2 * 0.011)

    @virtually
    async def test_sequences_decode_together_and_a_step_takes_longer_for_each(self) -> None:
        async with stepping() as engine:
            asked = await together(*(ask(engine, completion(10, 11)) for _ in range(4)))
        expected = 0.010 + 40 * 0.0001 + 10 * (0.010 + 4 * 0.001)
        assert [one.seconds for one in asked] == pytest.approx([expected] * 4)

    @virtually
    async def test_a_prompt_longer_than_a_step_is_computed_in_pieces(self) -> None:
        async with stepping(max_num_batched_tokens=100) as engine:
            asked = await ask(engine, completion(250, 1))
            stats = engine.stats()
        assert asked.seconds == pytest.approx(3 * 0.010 + 250 * 0.0001)
        assert (stats.num_steps_total, stats.prefill_tokens_total) == (3, 250)

    @virtually
    async def test_beside_others_a_long_prompt_leaves_half_of_each_step(self) -> None:
        async with stepping(max_num_batched_tokens=80) as engine:
            long = asyncio.create_task(ask(engine, completion(8000, 1)))
            await asyncio.sleep(0.5)
            light = await ask(engine, completion(10, 1))
            assert not long.done()
            await long
        step = 0.010 + 80 * 0.0001
        assert light.first_seconds <= 2 * step + 1e-9

    @virtually
    async def test_a_prompt_that_is_embedded_goes_through_the_steps_too(self) -> None:
        async with stepping(max_num_batched_tokens=100) as engine:
            seat, began = OpenSeat(), now()
            await engine.submit(engine_request(Operation.EMBEDDING, {"input": " water" * 150}), seat)
            seconds, stats = now() - began, engine.stats()
        assert seconds == pytest.approx(2 * 0.010 + 150 * 0.0001)
        assert (seat.prompts, seat.num_generated) == ([(150, 0)], 0)
        assert (stats.prefill_tokens_total, stats.generation_tokens_total, stats.num_requests_running) == (150, 0, 0)


class TestOrder:
    @virtually
    async def test_the_more_urgent_class_goes_first_and_within_it_the_favoured_and_then_who_came_first(self) -> None:
        order: list[str] = []

        async def tell(name: str, service_class: ServiceClass) -> None:
            asked = Asked()
            asked.seat.is_favoured = name.startswith("favoured")
            await ask(engine, completion(5, 2, service_class), asked)
            order.append(name)

        async with stepping(max_num_seqs=1) as engine, asyncio.TaskGroup() as group:
            for name, service_class in [
                ("running", ServiceClass.BATCH),
                ("batch", ServiceClass.BATCH),
                ("favoured batch", ServiceClass.BATCH),
                ("one", ServiceClass.STANDARD),
                ("two", ServiceClass.STANDARD),
                ("favoured", ServiceClass.STANDARD),
                ("urgent", ServiceClass.INTERACTIVE),
            ]:
                group.create_task(tell(name, service_class))
                await asyncio.sleep(0.001)
        assert order == ["running", "urgent", "favoured", "one", "two", "favoured batch", "batch"]

    @virtually
    async def test_every_choice_is_a_sequence(self) -> None:
        async with stepping(max_num_seqs=4) as engine:
            wide = asyncio.create_task(ask(engine, completion(5, 10, n=3)))
            await turns()
            both = asyncio.create_task(ask(engine, completion(5, 10, n=2)))
            await asyncio.sleep(0.030)
            stats = engine.stats()
            assert (stats.num_requests_running, stats.num_requests_waiting) == (3, 2)
            await together(wide, both)
            assert engine.stats().decode_tokens_total == 9 * 5

    @virtually
    async def test_where_memory_runs_out_the_least_urgent_and_newest_computes_again_later(self) -> None:
        async with stepping(kv_cache_tokens=100) as engine:
            urgent = asyncio.create_task(ask(engine, completion(40, 30, ServiceClass.INTERACTIVE)))
            await turns()
            lazy = asyncio.create_task(ask(engine, completion(40, 30)))
            await together(urgent, lazy)
            stats = engine.stats()
        assert urgent.result().seconds < lazy.result().seconds
        assert stats.num_preemptions_total == 1
        assert stats.prefill_tokens_total > 80
        assert (stats.prompt_tokens_total, stats.generation_tokens_total) == (80, 60)
        assert lazy.result().seat.prompts == [(40, 0)]

    @virtually
    async def test_one_that_gives_way_makes_room_for_all_the_others(self) -> None:
        async with stepping(kv_cache_tokens=100) as engine:
            await together(*(ask(engine, completion(33, 12)) for _ in range(3)))
            assert engine.stats().num_preemptions_total == 1

    @pytest.mark.parametrize("prefix_caching", [False, True])
    def test_no_step_keeps_more_tokens_than_fit(self, prefix_caching: bool) -> None:
        async def serve() -> None:
            async with stepping(kv_cache_tokens=100, prefix_caching=prefix_caching) as engine:
                await ask(engine, completion(60, 1))
                work = asyncio.gather(*(ask(engine, completion(60, 20 + n)) for n in range(4)))
                while not work.done():
                    assert engine.stats().kv_cache_usage <= 1
                    await asyncio.sleep(0.005)
                await work

        run_virtually(serve())

    @virtually
    async def test_what_can_never_fit_in_memory_is_refused(self) -> None:
        async with stepping(kv_cache_tokens=100) as engine:
            with pytest.raises(InvalidRequest, match="100"):
                await ask(engine, completion(60, 41))
            await ask(engine, completion(60, 40))


class TestPrefixes:
    @virtually
    async def test_a_prompt_that_came_before_with_the_same_salt_costs_its_end_alone(self) -> None:
        first, again, other = completion(100, 1), completion(100, 1), replace(completion(100, 1), cache_salt="b")
        async with stepping(prefix_caching=True) as engine:
            asked = [await ask(engine, request) for request in (first, again, other)]
            stats = engine.stats()
        assert [one.seat.prompts for one in asked] == [[(100, 0)], [(4, 96)], [(100, 0)]]
        assert asked[1].seconds == pytest.approx(0.010 + 4 * 0.0001)
        assert (stats.prompt_tokens_total, stats.prefill_tokens_total) == (300, 204)

    @virtually
    async def test_without_prefix_caching_nothing_is_at_hand(self) -> None:
        async with stepping() as engine:
            asked = [await ask(engine, completion(100, 1)) for _ in range(2)]
        assert [one.seat.prompts for one in asked] == [[(100, 0)], [(100, 0)]]

    def test_the_last_token_is_always_computed_and_the_cache_is_bounded(self) -> None:
        cache = PrefixCache(max_num_blocks=3)
        prompt = ["x"] * (2 * BLOCK_TOKENS)
        Prefixes(cache, [prompt, []], None).keep()
        assert Prefixes(cache, [prompt, []], None).num_cached() == [2 * BLOCK_TOKENS - 1, 0]
        Prefixes(cache, [["y"] * (2 * BLOCK_TOKENS)], None).keep()
        assert Prefixes(cache, [prompt], None).num_cached() == [BLOCK_TOKENS]


class TestLeaving:
    @virtually
    async def test_a_stream_that_is_closed_makes_way_at_the_next_step(self) -> None:
        async with stepping(max_num_seqs=1) as engine:
            leaving: Any = await engine.submit(completion(5, 1000), OpenSeat())
            await anext(leaving.deltas)
            waiting = asyncio.create_task(ask(engine, completion(5, 1)))
            await turns()
            await leaving.deltas.aclose()
            assert engine.stats().num_requests_running == 0
            asked = await waiting
        one_step_under_way, its_own = 0.011, 0.0105
        assert asked.seconds <= one_step_under_way + its_own + 1e-9

    @virtually
    async def test_a_unary_request_that_is_cancelled_leaves_nothing(self) -> None:
        async with stepping() as engine:
            request = engine_request(Operation.RESPONSE, {"input": "Where?", "max_output_tokens": 1000})
            asking = asyncio.create_task(engine.submit(request, OpenSeat()))
            await asyncio.sleep(0.1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert engine.stats().num_requests_running == 0
            num_steps = engine.stats().num_steps_total
            await asyncio.sleep(1)
            assert engine.stats().num_steps_total <= num_steps + 1

    @virtually
    async def test_a_closed_engine_ends_what_runs_and_what_waits(self) -> None:
        async with stepping(max_num_seqs=1) as engine:
            asking = [asyncio.create_task(ask(engine, completion(5, 1000))) for _ in range(2)]
            await asyncio.sleep(0.1)
            await engine.close()
            for task in asking:
                with pytest.raises(EngineDied):
                    await task
            with pytest.raises(EngineDied):
                await ask(engine, completion(5, 1))
            assert engine.stats().num_requests_running == engine.stats().num_requests_waiting == 0


PAYLOADS: dict[Operation, dict[str, object]] = {
    Operation.CHAT: {"messages": [{"role": "user", "content": "Where does the water come from?"}], "n": 2},
    Operation.COMPLETION: {"prompt": ["Where", "does it go?"], "max_tokens": 5, "n": 2},
    Operation.RESPONSE: {"input": "Where?"},
    Operation.MESSAGE: {"messages": [{"role": "user", "content": "Where?"}], "max_tokens": 7},
    Operation.COUNT_TOKENS: {"messages": [{"role": "user", "content": "Where?"}]},
    Operation.EMBEDDING: {"input": ["the mill", "the river"]},
    Operation.RERANK: {"query": "mill", "documents": ["the mill", "the river"]},
    Operation.SCORE: {"text_1": "mill", "text_2": ["the mill", "the river"]},
    Operation.TOKENIZE: {"prompt": "the mill"},
    Operation.DETOKENIZE: {"tokens": [1]},
}


class TestAccounts:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("operation", list(Operation))
    @pytest.mark.parametrize("costs", [{}, COSTS], ids=["paced", "in steps"])
    def test_what_the_seat_hears_is_what_the_engine_counts(
        self, operation: Operation, stream: bool, costs: dict[str, object]
    ) -> None:
        run_virtually(self._check_account(operation, stream=stream, costs=costs))

    async def _check_account(self, operation: Operation, *, stream: bool, costs: dict[str, object]) -> None:
        engine = SyntheticEngine(EngineSpec(MODEL, "synthetic", arguments=costs))
        await engine.start()
        request, seat = engine_request(operation, PAYLOADS[operation], stream=stream), OpenSeat()
        reply = await written(request, await engine.submit(request, seat))
        if isinstance(reply, StreamReply):
            assert [event async for event in reply.events]
        stats = engine.stats()
        await engine.close()
        assert sum(map(sum, seat.prompts)) == stats.prompt_tokens_total == (seat.demands[0].num_prompt_tokens or 0)
        assert seat.num_generated == stats.generation_tokens_total == seat.demands[0].max_output_tokens
        if costs:
            assert stats.prefill_tokens_total == stats.prompt_tokens_total

    @virtually
    async def test_a_demand_counts_the_choices_of_all_prompts(self) -> None:
        seat = OpenSeat()
        async with stepping() as engine:
            generation: Any = await engine.submit(completion(2, 3, n=4, prompt=["one two", "three"]), seat)
            await generation.deltas.aclose()
        (demand,) = seat.demands
        assert demand == Demand(demand.num_prompt_tokens, 24, 8)

    @settings(max_examples=40)
    @given(
        requests=st.lists(
            st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(1, 3), st.sampled_from(list(ServiceClass))),
            max_size=12,
        ),
        limits=st.fixed_dictionaries(
            {"max_num_seqs": st.integers(1, 6), "max_num_batched_tokens": st.integers(3, 50)},
            optional={"kv_cache_tokens": st.integers(120, 300)},
        ),
    )
    def test_whatever_comes_everything_is_served_and_counted_once(
        self, requests: list[tuple[int, int, int, ServiceClass]], limits: dict[str, object]
    ) -> None:
        async def serve() -> None:
            async with stepping(**limits) as engine:
                work = (ask(engine, completion(p, o, service_class, n=n)) for p, o, n, service_class in requests)
                serving = asyncio.create_task(together(*work))
                while not serving.done():
                    assert engine.stats().kv_cache_usage <= 1 or "kv_cache_tokens" not in limits
                    await asyncio.sleep(0.0037)
                asked = await serving
                stats = engine.stats()
            assert [one.seat.num_generated for one in asked] == [o * n for _, o, n, _ in requests]
            assert [one.seat.prompts for one in asked] == [[(p, 0)] for p, _, _, _ in requests]
            assert stats.generation_tokens_total == sum(o * n for _, o, n, _ in requests)
            assert stats.prefill_tokens_total >= stats.prompt_tokens_total == sum(p for p, _, _, _ in requests)
            assert (stats.num_requests_running, stats.num_requests_waiting) == (0, 0)
            if stats.num_preemptions_total == 0:
                assert stats.prefill_tokens_total == stats.prompt_tokens_total

        run_virtually(serve())


class TestArguments:
    def test_the_capacity_is_what_was_set(self) -> None:
        async def info(**arguments: object) -> EngineCapacity:
            engine = SyntheticEngine(EngineSpec(MODEL, "synthetic", arguments=arguments))
            return (await engine.start()).capacity

        limits = {"max_num_seqs": 4, "max_num_batched_tokens": 100, "kv_cache_tokens": 1000}
        assert run_virtually(info(**COSTS, **limits)) == EngineCapacity(4, 100, 1000, 50)
        assert run_virtually(info(max_num_seqs=4)) == EngineCapacity(4)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"step_ms": 1, "ttft_ms": 5}, "ttft_ms"),
            ({"step_ms": 1, "itl_ms": 5}, "itl_ms"),
            ({"prefill_us_per_token": 1}, "step_ms"),
            ({"decode_us_per_sequence": 1}, "step_ms"),
            ({"step_ms": -1}, "negative"),
            ({"step_ms": 1, "max_num_batched_tokens": 0}, "positive"),
            ({"step_ms": 1, "kv_cache_tokens": 0}, "positive"),
        ],
    )
    def test_arguments_that_do_not_go_together_are_a_usage_error(
        self, arguments: dict[str, object], words: str
    ) -> None:
        with pytest.raises(UsageError, match=words):
            SyntheticEngine(EngineSpec(MODEL, "synthetic", arguments=arguments))
