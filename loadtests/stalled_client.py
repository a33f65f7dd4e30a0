"""What one client costs that asks for a long answer at full speed and never reads: memory, until when, and the others.

The server's /metrics says when its request has left the engine (to half a second), the kernel what the server's memory
is, and 16 streams that go on all the time show whether anything was taken from them.
"""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from headrace_server.bench.endpoint import Api, Endpoint, http_request
from headrace_server.bench.summary import BlockResult
from loadtests.crowd import STREAMS
from loadtests.limits_server import METRICS_SECONDS, LimitsServer

FLOOD_MODEL = "flood"
NUM_TOKENS = 4000

_RECEIVE_BUFFER_BYTES = 4096
_POLL_SECONDS = 0.05
_BASELINE_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class StalledFindings:
    """Of a client that never read.

    Attributes:
        ended_after_seconds: from its request until that had left the engine; None: not within the time allowed.
        memory_bytes: the server's highest private memory in that time, less the highest before it with the same others.
        num_tokens_made: for it, of 4,000.
        others: the streams that went on meanwhile.
    """

    ended_after_seconds: float | None
    memory_bytes: int
    num_tokens_made: int
    others: BlockResult


async def measure_stalled_client(server: LimitsServer, *, num_rounds: int, most_seconds: float) -> StalledFindings:
    """Let one come while 16 streams go on, `num_rounds` times 128 tokens; waits at most `most_seconds` for its end.

    Raises:
        SideFailed: the server did.
    """
    load = replace(STREAMS, num_requests=STREAMS.num_requests * num_rounds)
    async with asyncio.TaskGroup() as group:
        others = group.create_task(server.side.run_block(load, 0))
        before = await _highest_memory(server, _BASELINE_SECONDS)
        made_before = (await server.counts()).tokens_made[FLOOD_MODEL]
        with _never_reading(server.endpoint):
            ended_after, highest = await _watch(server, most_seconds)
        made = (await server.settled_counts()).tokens_made[FLOOD_MODEL] - made_before
    return StalledFindings(ended_after, max(0, highest - before), made, others.result())


async def _highest_memory(server: LimitsServer, seconds: float) -> int:
    highest = 0
    for _ in range(round(seconds / _POLL_SECONDS)):
        highest = max(highest, server.private_bytes())
        await server.counts()
        await asyncio.sleep(_POLL_SECONDS)
    return highest


async def _watch(server: LimitsServer, most_seconds: float) -> tuple[float | None, int]:
    """When the request had left the engine, and the highest memory until then."""
    began, highest = time.monotonic(), 0
    while (passed := time.monotonic() - began) < most_seconds:
        highest = max(highest, server.private_bytes())
        still_there = (await server.counts()).in_engine[FLOOD_MODEL]
        if passed > 2 * METRICS_SECONDS and not still_there:
            return passed, highest
        await asyncio.sleep(_POLL_SECONDS)
    return None, highest


@contextmanager
def _never_reading(endpoint: Endpoint) -> Iterator[None]:
    """A connection whose stream is asked for and not read."""
    document = Api.CHAT.document(FLOOD_MODEL, "never read", num_tokens=NUM_TOKENS, stream=True)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        client.settimeout(10)
        client.connect((endpoint.host, endpoint.port))
        client.sendall(http_request(endpoint, Api.CHAT.path, document))
        yield
