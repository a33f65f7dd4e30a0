"""How much shared memory an engine's queues take."""

import pytest

from headrace_server.engine.vllm_shared_memory import chunk_bytes

MIB = 1024**2


@pytest.mark.parametrize("wanted_bytes", [16 * MIB, 24 * MIB])
def test_where_there_is_room_messages_are_as_large_as_vllm_wants_them(wanted_bytes: int) -> None:
    assert chunk_bytes(wanted_bytes, 10, 8 * 1024 * MIB) == wanted_bytes


def test_in_a_container_with_64_mib_the_queues_of_several_engines_fit() -> None:
    free_bytes = 64 * MIB
    for _ in range(4):
        for wanted_bytes in (16 * MIB, 24 * MIB):
            taken = 10 * chunk_bytes(wanted_bytes, 10, free_bytes)
            assert taken <= free_bytes / 8


def test_messages_are_never_so_small_that_each_needs_a_socket() -> None:
    assert chunk_bytes(16 * MIB, 10, 0) == 64 * 1024
