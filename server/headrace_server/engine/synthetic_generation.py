"""One request while the synthetic engine works on it: waits for its place, keeps the pace, counts.

A `Run` is the stream that the engine hands out. It may be closed from another task while a receiver waits for
its next item; the receiver then sees the end. However it ends, its place is given up at once and nothing more is
counted. A class, not a generator, because a generator that never started runs no `finally`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from headrace_server.engine.synthetic_plan import Plan
from headrace_server.engine.synthetic_slots import Slots, Ticket
from headrace_server.errors import EngineFault

Item = TypeVar("Item")
Sleep: TypeAlias = Callable[[float], Awaitable[object]]

# Without gaps between tokens the loop still gets its turn every so many steps, so that clients can leave. Each turn
# costs 5 to 20 µs, depending on the loop.
_STEPS_PER_TURN = 8


@dataclass(slots=True)
class Totals:
    """Tokens since the engine's start."""

    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast tokens come, and after how many the request fails."""

    ttft_seconds: float
    itl_seconds: float
    fail_after_tokens: int | None
    sleep: Sleep

    async def before_step(self, step: int) -> None:
        if step == 0:
            await self.sleep(self.ttft_seconds)
        elif self.itl_seconds:
            await self.sleep(self.itl_seconds)
        elif step % _STEPS_PER_TURN == 0:
            await self.sleep(0)


class Run(Generic[Item]):
    """The given items: one per step of the plan, and one when it is over if there is one more."""

    def __init__(self, plan: Plan, items: Iterator[Item], *, slots: Slots, pace: Pace, totals: Totals) -> None:
        self._num_prompt_tokens = plan.num_prompt_tokens
        self._num_steps = plan.num_steps
        self._widths = plan.tokens_per_step()
        self._items = items
        self._slots = slots
        self._pace = pace
        self._totals = totals
        self._ticket = Ticket()
        self._step = 0
        self._num_made = 0
        self._closed = False

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        try:
            return await self._next()
        except BaseException:
            self._end()
            raise

    async def aclose(self) -> None:
        """Stop the work and give the place up. Safe at any time and from any task."""
        self._end()

    def _end(self) -> None:
        self._closed = True
        self._slots.leave(self._ticket)

    async def _next(self) -> Item:
        if self._closed:
            raise StopAsyncIteration
        self._fail_if_asked_to()
        if self._step == self._num_steps:
            self._end()
            for last in self._items:
                return last
            raise StopAsyncIteration
        if self._step == 0:
            await self._slots.enter(self._ticket)
            self._stop_without_place()
        await self._pace.before_step(self._step)
        self._stop_without_place()
        return self._made()

    def _stop_without_place(self) -> None:
        """End the iteration if the stream was closed while its reader waited."""
        if not self._slots.holds(self._ticket):
            raise StopAsyncIteration

    def _fail_if_asked_to(self) -> None:
        limit = self._pace.fail_after_tokens
        if limit is not None and self._num_made >= limit:
            raise EngineFault("the engine failed on this request, as it was told to")

    def _made(self) -> Item:
        if self._step == 0:
            self._totals.num_prompt_tokens += self._num_prompt_tokens
        width = next(self._widths)
        self._num_made += width
        self._totals.num_generation_tokens += width
        self._step += 1
        return next(self._items)
