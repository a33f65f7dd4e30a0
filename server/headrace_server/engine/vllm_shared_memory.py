"""vLLM's queues between an engine and its workers, in containers whose shared memory is small.

Each queue reserves ten times its largest message, 160 MiB towards a worker and 240 MiB back, and an engine does not
start where that is not free. Docker and Kubernetes give a container 64 MiB unless told otherwise. What a queue takes is
what its messages need, some kilobytes; one that is too large for its queue goes through a socket.
"""

import shutil
from pathlib import Path
from typing import Any

SHARED_MEMORY = Path("/dev/shm")
_SHARE = 8  # queues of four engines, of which each has two
_LEAST_CHUNK_BYTES = 64 * 1024


def chunk_bytes(wanted_bytes: int, num_chunks: int, free_bytes: int) -> int:
    """How large a queue's messages may be, so that all of them take an eighth of what is free at most."""
    return min(wanted_bytes, max(free_bytes // (_SHARE * num_chunks), _LEAST_CHUNK_BYTES))


def fit_queues() -> None:
    """Have the queues that are made from now on in this process fit the shared memory that is free then."""
    from vllm.distributed.device_communicators.shm_broadcast import ShmRingBuffer

    make = ShmRingBuffer.__init__

    def make_fitting(
        buffer: Any, n_reader: int, max_chunk_bytes: int, max_chunks: int, name: str | None = None
    ) -> None:
        if name is None and SHARED_MEMORY.is_dir():  # who only opens a queue takes it as it is
            max_chunk_bytes = chunk_bytes(max_chunk_bytes, max_chunks, shutil.disk_usage(SHARED_MEMORY).free)
        make(buffer, n_reader, max_chunk_bytes, max_chunks, name)

    ShmRingBuffer.__init__ = make_fitting
