"""One request while the synthetic engine works on it: waits for its tokens, hands them out, counts.

A `Run` is the stream that the engine hands out. It may be closed from another task while a receiver waits for
its next item; the receiver then sees the end. However it ends, its place is given up at once and nothing more is
counted. A class, not a generator, because a generator that never started runs no `finally`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from headrace_server.domain import Seat
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
class Account:
    """Where a request's tokens are counted."""

    seat: Seat
    totals: Totals

    def began(self, prompt_lengths: Sequence[int], num_cached_tokens: Sequence[int]) -> None:
        """The prompts have been worked through; of each, so many tokens were at hand."""
        for length, num_cached in zip(prompt_lengths, num_cached_tokens, strict=True):
            self.totals.num_prompt_tokens += length
            self.seat.began(length - num_cached, num_cached)

    def generated(self, num_tokens: int) -> None:
        """See `Seat.generated`."""
        self.totals.num_generation_tokens += num_tokens
        self.seat.generated(num_tokens)


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks of the engine.

    Attributes:
        prompt_lengths: tokens of each prompt.
        widths: how many tokens each step makes, one for each choice that has not ended; a step that makes none
            works the prompts through and no more.
        account: told of what is done.
    """

    prompt_lengths: tuple[int, ...]
    widths: tuple[int, ...]
    account: Account

    @property
    def num_prompt_tokens(self) -> int:
        return sum(self.prompt_lengths)


class Place(Protocol):
    """Where a request is worked on."""

    async def step(self) -> int | None:
        """Wait for the request's next tokens, and say how many there are; None: the place was given up meanwhile.

        Raises:
            EngineDied: the engine closed.
        """

    def leave(self) -> None:
        """Stop the work. In any state, any number of times, from any task."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast tokens come."""

    ttft_seconds: float
    itl_seconds: float
    sleep: Sleep

    async def before_step(self, step: int) -> None:
        if step == 0:
            await self.sleep(self.ttft_seconds)
        elif self.itl_seconds:
            await self.sleep(self.itl_seconds)
        elif step % _STEPS_PER_TURN == 0:
            await self.sleep(0)


class PacedPlace:
    """A `Place` among `slots`, where requests do not slow each other down."""

    def __init__(self, work: Work, slots: Slots, pace: Pace) -> None:
        self._work = work
        self._slots = slots
        self._pace = pace
        self._ticket = Ticket()
        self._step = 0

    async def step(self) -> int | None:
        """See `Place.step`."""
        if self._step == 0:
            await self._slots.enter(self._ticket)
            if not self._slots.holds(self._ticket):
                return None
        await self._pace.before_step(self._step)
        if not self._slots.holds(self._ticket):
            return None
        return self._counted()

    def _counted(self) -> int:
        work = self._work
        if self._step == 0:
            work.account.began(work.prompt_lengths, [0] * len(work.prompt_lengths))
        num_tokens = work.widths[self._step]
        work.account.generated(num_tokens)
        self._step += 1
        return num_tokens

    def leave(self) -> None:
        """See `Place.leave`."""
        self._slots.leave(self._ticket)


class Run(Generic[Item]):
    """The given items: one per step of the plan, and one when it is over if there is one more. Fails once it has made
    `fail_after_tokens`."""

    def __init__(self, plan: Plan, items: Iterator[Item], place: Place, *, fail_after_tokens: int | None) -> None:
        self._num_steps = plan.num_steps
        self._items = items
        self._place = place
        self._fail_after_tokens = fail_after_tokens
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
        self._place.leave()

    async def _next(self) -> Item:
        if self._closed:
            raise StopAsyncIteration
        self._fail_if_asked_to()
        if self._step == self._num_steps:
            self._end()
            for last in self._items:
                return last
            raise StopAsyncIteration
        num_tokens = await self._place.step()
        if num_tokens is None:
            raise StopAsyncIteration
        self._step += 1
        self._num_made += num_tokens
        return next(self._items)

    def _fail_if_asked_to(self) -> None:
        if self._fail_after_tokens is not None and self._num_made >= self._fail_after_tokens:
            raise EngineFault("the engine failed on this request, as it was told to")
