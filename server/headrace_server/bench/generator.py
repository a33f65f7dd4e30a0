"""Sends a block of requests and keeps what comes back; nothing is read off it here.

Every request is written out as bytes before the first is sent, and every reply is parsed after the last has come, so
that while a block runs this process costs little (`TrafficCost` says how little). All requests of a block run in one
task group: leaving it, by an exception or a cancellation, leaves none behind.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from headrace_server.bench.arrivals import BlockPlan
from headrace_server.bench.http_client import ConnectionPool, Reception
from headrace_server.bench.http_reply import ExchangeFailed

# A server that has gone, or hangs, is asked no further; a few failures among many requests end nothing.
GIVE_UP_AFTER_FAILURES = 16


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that was sent: number `place` of its plan; when it was due (open loop), and what came."""

    place: int
    due_at: float | None
    came: Reception | ExchangeFailed


@dataclass(frozen=True, slots=True)
class Traffic:
    """All exchanges of a block, in no order; `num_sent` was counted when they were begun.

    `cpu_seconds` is this process's own processor time from the first request to the last reply, `wall_seconds` the time
    between the two.
    """

    exchanges: tuple[Exchange, ...]
    num_sent: int
    cpu_seconds: float
    wall_seconds: float


async def send_block(
    pool: ConnectionPool, plan: BlockPlan, requests: Sequence[bytes], *, timeout_seconds: float
) -> Traffic:
    """Send `requests`, the bytes of each request of `plan`, when it is due, and wait for all replies."""
    sender = _Sender(pool, plan, requests, timeout_seconds=timeout_seconds)
    cpu_before, began = time.process_time(), time.monotonic()
    async with asyncio.TaskGroup() as group:
        if plan.num_streams is None:
            await sender.send_when_due(group)
        else:
            for _ in range(min(plan.num_streams, len(requests))):
                group.create_task(sender.send_one_after_another())
    return Traffic(
        exchanges=tuple(sender.exchanges),
        num_sent=sender.num_sent,
        cpu_seconds=time.process_time() - cpu_before,
        wall_seconds=time.monotonic() - began,
    )


_Numbered: TypeAlias = tuple[int, bytes]


class _Sender:
    """The state that the tasks of one block share."""

    def __init__(
        self, pool: ConnectionPool, plan: BlockPlan, requests: Sequence[bytes], *, timeout_seconds: float
    ) -> None:
        self.exchanges: list[Exchange] = []
        self.num_sent = 0
        self._pool = pool
        self._plan = plan
        self._waiting = enumerate(requests)
        self._timeout_seconds = timeout_seconds
        self._num_failures = 0

    @property
    def _gave_up(self) -> bool:
        return self._num_failures >= GIVE_UP_AFTER_FAILURES

    async def send_one_after_another(self) -> None:
        """One stream of a closed loop."""
        for numbered in self._waiting:
            await self._send(numbered, None)
            if self._gave_up:
                return

    async def send_when_due(self, group: asyncio.TaskGroup) -> None:
        """An open loop. The event loop's timers are exact to a millisecond."""
        began = time.monotonic()
        for place, request in self._waiting:
            due_at = began + (self._plan.requests[place].due_seconds or 0.0)
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            if self._gave_up:
                return
            group.create_task(self._send((place, request), due_at))

    async def _send(self, numbered: _Numbered, due_at: float | None) -> None:
        place, request = numbered
        self.num_sent += 1
        came: Reception | ExchangeFailed
        try:
            came = await self._pool.exchange(request, timeout_seconds=self._timeout_seconds)
        except ExchangeFailed as error:
            came = error
            self._num_failures += 1
        self.exchanges.append(Exchange(place, due_at, came))
