"""How much an engine is given at a time."""

from dataclasses import replace

import pytest

from headrace_server.domain import EngineCapacity, EngineStats
from headrace_server.scheduling.capacity import SLOTS_WHERE_NOTHING_IS_KNOWN, Capacity, Obstacle
from headrace_server.scheduling.claims import EVERYTHING, ORDINARY, Claim
from headrace_server.scheduling.costs import Habits
from headrace_server.scheduling.load import Load
from headrace_server.scheduling.options import QueueOptions

ENGINE = EngineCapacity(max_num_seqs=64, max_num_batched_tokens=512, kv_cache_tokens=10_000)
ONE = Load(num_requests=1, num_slots=1, num_prompts=1, num_prefill_tokens=100, num_tokens=100)
URGENT = Claim(kept=0.5, has_prompt_room=True)
LIGHT = Claim(kept=0.25, may_exceed=True, has_prompt_room=True, goes_first=True)


def capacity(engine: EngineCapacity = ENGINE, options: QueueOptions | None = None) -> Capacity:
    habits = Habits()
    habits.ended(100, 1)
    made = Capacity(QueueOptions() if options is None else options, habits)
    made.engine_changed(engine)
    return made


def measured(made: Capacity, per_step: float, per_sequence: float, *, num_steps: int = 400) -> Capacity:
    stats = EngineStats()
    for step in range(num_steps):
        num_decoding = 1 + step % 60
        stats = replace(
            stats,
            num_steps_total=stats.num_steps_total + 1,
            step_seconds_total=stats.step_seconds_total + per_step + per_sequence * num_decoding,
            decode_tokens_total=stats.decode_tokens_total + num_decoding,
        )
        made.observe(stats)
    return made


def obstacle(made: Capacity, load: Load, need: Load = ONE, claim: Claim = ORDINARY) -> Obstacle | None:
    return made.obstacle(need, load, claim)


def test_the_slots_are_the_engines_or_fewer_if_the_operator_says_so() -> None:
    assert capacity().slots == 64
    assert capacity(options=QueueOptions(slot_limit=10)).slots == 10
    assert capacity(options=QueueOptions(slot_limit=100)).slots == 64
    assert capacity(EngineCapacity()).slots == SLOTS_WHERE_NOTHING_IS_KNOWN
    assert capacity(EngineCapacity(), QueueOptions(slot_limit=100)).slots == 100


def test_a_step_that_decodes_for_people_keeps_to_its_target_and_one_for_batch_work_does_not() -> None:
    made = measured(capacity(), 0.02, 0.01)
    assert made.slots == pytest.approx(13, abs=1)
    made.adapt(0.0, is_batch_only=True)
    assert made.slots == 64


def test_a_model_whose_empty_step_is_slow_is_given_twice_that_time() -> None:
    assert measured(capacity(), 0.2, 0.01).slots == pytest.approx(20, abs=1)


def test_who_has_no_claim_leaves_the_reserve_alone() -> None:
    made = capacity()
    assert made.reserved_slots == 8
    full = Load(num_requests=57, num_slots=57)
    assert obstacle(made, full) is Obstacle.SLOTS
    assert obstacle(made, full, claim=URGENT) is None
    assert obstacle(made, full, claim=LIGHT) is None
    assert obstacle(made, Load(num_requests=64, num_slots=64), claim=EVERYTHING) is Obstacle.SLOTS


def test_who_holds_little_may_exceed_a_measured_limit_by_the_reserve_but_not_the_engines() -> None:
    made = measured(capacity(), 0.02, 0.005)
    assert made.slots == pytest.approx(26, abs=1)
    crowded = Load(num_requests=40, num_slots=40)
    assert obstacle(made, crowded) is Obstacle.SLOTS
    assert obstacle(made, crowded, claim=URGENT) is Obstacle.SLOTS
    for claim in (LIGHT, EVERYTHING):
        assert obstacle(made, crowded, claim=claim) is None
        assert made.is_favour(ONE, crowded, claim)
        assert not made.is_favour(ONE, Load(num_requests=1, num_slots=1), claim)
        assert obstacle(made, replace(crowded, num_favoured_slots=3), claim=claim) is Obstacle.SLOTS
        assert obstacle(made, Load(num_requests=64, num_slots=64), claim=claim) is Obstacle.SLOTS


def test_the_reserve_costs_three_per_cent_unless_interactive_work_has_come_lately() -> None:
    made = measured(capacity(), 0.02, 0.0001)
    assert made.reserved_slots == 2
    made.interactive_came(10.0)
    made.adapt(10.0, is_batch_only=False)
    assert made.reserved_slots == 8
    made.adapt(71.0, is_batch_only=False)
    assert made.reserved_slots == 2


def test_one_slot_is_everybodys() -> None:
    made = capacity(EngineCapacity(max_num_seqs=1))
    assert made.reserved_slots == 0
    assert obstacle(made, Load()) is None


def test_short_outputs_get_slots_ahead_but_not_beyond_the_operators_limit() -> None:
    assert capacity().slots_ahead == 0
    short = Capacity(QueueOptions(), Habits())
    short.engine_changed(ENGINE)
    assert short.slots_ahead == 0
    habits = Habits()
    habits.ended(16, 1)
    brief = Capacity(QueueOptions(), habits)
    brief.engine_changed(ENGINE)
    assert brief.slots_ahead == 4
    limited = Capacity(QueueOptions(slot_limit=32), habits)
    limited.engine_changed(ENGINE)
    assert limited.slots_ahead == 0


def test_prompts_wait_once_a_step_of_them_waits_in_the_engine() -> None:
    made = capacity()
    computing = Load(num_requests=5, num_slots=5, num_prompts=5, num_prefill_tokens=500, num_computing_tokens=500)
    assert obstacle(made, computing) is None
    waiting = replace(computing, num_prefill_tokens=900)
    assert obstacle(made, waiting) is Obstacle.PROMPTS
    assert obstacle(made, waiting, claim=LIGHT) is None
    crowded = replace(waiting, num_favoured_tokens=950)
    assert obstacle(made, crowded, claim=LIGHT) is Obstacle.PROMPTS


def test_those_who_go_first_have_room_for_a_step_beside_what_is_being_computed() -> None:
    made = capacity()
    load = Load(num_requests=5, num_slots=5, num_prompts=5, num_prefill_tokens=1900, num_favoured_tokens=900)
    assert obstacle(made, load, claim=LIGHT) is None
    assert obstacle(made, load, claim=URGENT) is Obstacle.PROMPTS
    assert obstacle(made, replace(load, num_favoured_tokens=950), claim=LIGHT) is Obstacle.PROMPTS


def test_beside_a_prompt_that_takes_half_a_step_at_most_no_other_long_one_goes_before_it_ends_in_that_step() -> None:
    made = capacity(replace(ENGINE, longest_chunk_tokens=256))
    long = Load(num_requests=1, num_slots=1, num_prompts=1, num_prefill_tokens=2000, num_tokens=2000)
    two_steps_left = Load(num_requests=1, num_prompts=1, num_prefill_tokens=500, num_computing_tokens=500)
    assert obstacle(made, two_steps_left, long) is Obstacle.PROMPTS
    last_step = replace(two_steps_left, num_prefill_tokens=250, num_computing_tokens=250)
    assert obstacle(made, last_step, long) is None
    assert obstacle(capacity(), two_steps_left, long) is None


def test_a_long_prompt_has_no_room_of_its_own_beside_another_one() -> None:
    made = capacity(replace(ENGINE, longest_chunk_tokens=256))
    long = Load(num_requests=1, num_slots=1, num_prompts=1, num_prefill_tokens=2000, num_tokens=2000)
    short = Load(num_requests=3, num_slots=3, num_prompts=3, num_prefill_tokens=300)
    assert made.limited(LIGHT, long, long) == replace(LIGHT, has_prompt_room=False)
    assert made.limited(LIGHT, ONE, long) == made.limited(LIGHT, long, short) == LIGHT


def test_a_prompt_longer_than_a_step_goes_when_no_other_waits() -> None:
    made = capacity()
    long = Load(num_requests=1, num_slots=1, num_prefill_tokens=5000, num_tokens=5000)
    assert obstacle(made, Load(num_requests=1, num_slots=1), long) is None
    computing = Load(num_requests=1, num_slots=1, num_prompts=1, num_prefill_tokens=400, num_computing_tokens=400)
    assert obstacle(made, computing, long) is None
    assert obstacle(made, replace(computing, num_prefill_tokens=500), long) is Obstacle.PROMPTS


def test_memory_is_kept_for_what_outputs_will_grow_by() -> None:
    made = capacity()
    assert obstacle(made, Load(num_requests=8, num_slots=8, num_tokens=9500)) is None
    assert obstacle(made, Load(num_requests=20, num_slots=20, num_tokens=9500)) is Obstacle.MEMORY


def test_more_memory_is_kept_after_the_engine_preempted_and_less_as_requests_end() -> None:
    made = capacity()
    load = Load(num_requests=8, num_slots=8, num_tokens=9500)
    for num_preemptions in range(1, 20):
        made.observe(EngineStats(num_preemptions_total=num_preemptions))
    assert obstacle(made, load) is Obstacle.MEMORY
    for _ in range(200):
        made.request_ended()
    assert obstacle(made, load) is None


def test_shared_prefixes_take_memory_once() -> None:
    made = capacity()
    load = Load(num_requests=8, num_slots=8, num_tokens=50_000)
    assert obstacle(made, load) is Obstacle.MEMORY
    made.observe(EngineStats(kv_cache_usage=0.5))
    assert obstacle(made, load) is None


def test_without_a_known_cache_its_use_decides() -> None:
    made = capacity(EngineCapacity(max_num_seqs=64))
    load = Load(num_requests=8, num_slots=8, num_tokens=50_000)
    assert obstacle(made, load) is None
    made.observe(EngineStats(kv_cache_usage=0.97))
    assert obstacle(made, load) is Obstacle.MEMORY


def test_who_is_alone_is_always_let_in() -> None:
    huge = Load(num_requests=1, num_slots=64, num_prefill_tokens=10**6, num_tokens=10**6)
    assert obstacle(capacity(), Load(), huge) is None


def test_another_engine_is_measured_anew() -> None:
    made = measured(capacity(), 0.02, 0.01)
    made.engine_changed(ENGINE)
    assert (made.slots, made.steps.times) == (64, None)
