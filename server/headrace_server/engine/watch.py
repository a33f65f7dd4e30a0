"""Finds out that an engine is dead or hangs, by looking at it sixteen times a second.

A dead engine says so itself when it is looked at. One that hangs says nothing: it is sent a heartbeat, a round trip
through all of its processes, and is taken for hung once it has been silent for too long while one was under way. Steps
that end are signs of life too, so that one long heartbeat behind a long queue of work is no hang. Time in which our own
loop did not run (a laptop that slept, a machine that stalled) does not count, because the engine had no time either.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from headrace_server.domain import EngineStats
from headrace_server.engine.base import Engine
from headrace_server.errors import EngineDied, EngineDown

TICK_SECONDS = 1 / 16  # 0.1 ms of work
_LONGEST_GAP_SECONDS = 0.4  # a longer one is not the engine's
_BEATS_PER_LIMIT = 4


class Sleep(Protocol):
    """`asyncio.sleep`, or a stand-in."""

    async def __call__(self, seconds: float, /) -> None: ...


class Watch:
    """Watches one engine from when it is ready."""

    def __init__(
        self,
        engine: Engine,
        *,
        heartbeat_seconds: float,
        on_reach: Callable[[str | None], None],
        clock: Callable[[], float],
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`on_reach` is told why the engine cannot be reached now, and None when it can, each time it was looked at."""
        self._engine = engine
        self._limit_seconds = heartbeat_seconds
        self._on_reach = on_reach
        self._clock = clock
        self._sleep = sleep

    async def until_down(self) -> str:
        """Return once the engine is dead or hangs, and say which. Cancelling it ends the watch."""
        pulse = _Pulse(self._engine, self._limit_seconds, self._clock())
        try:
            while True:
                await self._sleep(TICK_SECONDS)
                try:
                    await self._engine.check()
                except EngineDied as error:
                    return error.message
                except EngineDown as error:
                    self._on_reach(error.message)
                else:
                    self._on_reach(None)
                if pulse.silent_seconds(self._clock()) > self._limit_seconds:
                    return f"the engine hangs: nothing moved for {self._limit_seconds:g} s"
        finally:
            await pulse.stop()


class _Pulse:
    """The heartbeats of one engine, and how long it has been silent."""

    def __init__(self, engine: Engine, limit_seconds: float, now: float) -> None:
        self._engine = engine
        self._interval_seconds = limit_seconds / _BEATS_PER_LIMIT
        self._beat: asyncio.Future[None] | None = None
        self._rested_seconds = self._silent_seconds = 0.0
        self._looked_at = now
        self._progress = _progress(engine.stats())

    def silent_seconds(self, now: float) -> float:
        """How long it has not moved though it was asked to; asks it where it is time to."""
        passed, self._looked_at = min(now - self._looked_at, _LONGEST_GAP_SECONDS), now
        if self._beat is None:
            self._rest(passed)
            return 0.0
        progress = _progress(self._engine.stats())
        if self._beat.done():
            self._end_beat(self._beat)
        elif progress != self._progress:
            self._silent_seconds = 0.0
        else:
            self._silent_seconds += passed
        self._progress = progress
        return self._silent_seconds

    def _rest(self, passed: float) -> None:
        self._rested_seconds += passed
        if self._rested_seconds >= self._interval_seconds:
            self._silent_seconds = 0.0
            self._beat = asyncio.ensure_future(self._engine.heartbeat())

    def _end_beat(self, beat: "asyncio.Future[None]") -> None:
        if not beat.cancelled():  # by the engine
            beat.exception()  # what is wrong, `check` says better
        self._beat, self._rested_seconds, self._silent_seconds = None, 0.0, 0.0

    async def stop(self) -> None:
        """End the heartbeat under way."""
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)


def _progress(stats: EngineStats) -> tuple[int, int]:
    return stats.prompt_tokens_total, stats.generation_tokens_total
