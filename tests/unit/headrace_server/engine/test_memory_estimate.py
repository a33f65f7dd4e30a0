"""How much memory an engine will take, from what is known before it starts."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.engine.memory_estimate import GPU_MEMORY_UTILIZATION, PROCESS_BYTES, EngineSize, estimated_memory
from headrace_server.engine.vllm_arguments import GIB

CHAT = EngineSize(weight_bytes=8 * GIB, stored_dtype="bfloat16")
PROCESSES = 2 * PROCESS_BYTES  # EngineCore and its worker


def test_on_a_processor_it_is_weights_cache_and_processes() -> None:
    assert estimated_memory(replace(CHAT, kv_cache_memory_bytes=3 * GIB)) == 11 * GIB + PROCESSES


def test_on_a_processor_the_cache_takes_1_gib_by_default() -> None:
    assert estimated_memory(CHAT) == 9 * GIB + PROCESSES


def test_encoders_have_no_cache_whatever_its_size_is_said_to_be() -> None:
    encoder = replace(CHAT, has_kv_cache=False)
    assert estimated_memory(encoder) == 8 * GIB + PROCESSES
    assert estimated_memory(replace(encoder, kv_cache_memory_bytes=GIB)) == 8 * GIB + PROCESSES


@pytest.mark.parametrize(
    ("stored", "computed", "gib"),
    [
        ("bfloat16", "float32", 16),
        ("float16", "float32", 16),
        ("float32", "bfloat16", 4),
        ("bfloat16", "float16", 8),
        ("bfloat16", "auto", 8),
        ("bfloat16", None, 8),
        ("float32", None, 8),
        (None, "float32", 8),
        ("float8_e4m3fn", "bfloat16", 8),
        ("u8", "float32", 8),
    ],
)
def test_weights_take_what_they_are_computed_in(stored: str | None, computed: str | None, gib: int) -> None:
    size = EngineSize(8 * GIB, stored, computed, has_kv_cache=False)
    assert estimated_memory(size) == gib * GIB + PROCESSES


def test_workers_share_the_weights_and_each_has_a_cache_and_a_process() -> None:
    assert estimated_memory(replace(CHAT, num_workers=2)) == (8 + 2) * GIB + 3 * PROCESS_BYTES


def test_on_gpus_it_is_a_share_of_each_whatever_the_model() -> None:
    on_gpu = replace(CHAT, device_bytes=(80 * GIB, 80 * GIB), gpu_memory_utilization=0.5)
    assert estimated_memory(on_gpu) == 40 * GIB
    assert estimated_memory(replace(on_gpu, num_workers=2)) == 80 * GIB
    assert estimated_memory(replace(on_gpu, has_kv_cache=False)) == 40 * GIB


def test_on_unequal_gpus_the_largest_is_assumed() -> None:
    assert estimated_memory(replace(CHAT, device_bytes=(24 * GIB, 80 * GIB), gpu_memory_utilization=0.5)) == 40 * GIB


def test_on_gpus_a_cache_of_a_given_size_takes_the_place_of_the_share() -> None:
    on_gpu = replace(CHAT, device_bytes=(80 * GIB,), gpu_memory_utilization=0.5, kv_cache_memory_bytes=2 * GIB)
    assert estimated_memory(on_gpu) == 10 * GIB + PROCESS_BYTES
    assert estimated_memory(replace(on_gpu, num_workers=2)) == 12 * GIB + 2 * PROCESS_BYTES


@given(st.integers(1, 2**40), st.integers(1, 8))
def test_a_model_on_all_gpus_at_the_default_fits_into_a_budget_of_the_same_share(size: int, num_devices: int) -> None:
    devices = (size,) * num_devices
    budget_bytes = int(GPU_MEMORY_UTILIZATION * sum(devices))
    assert estimated_memory(EngineSize(1, num_workers=num_devices, device_bytes=devices)) <= budget_bytes
