"""The way out: whoever asks for it, the server drains once and stops, and nobody waits for a server that is gone."""

import asyncio

import pytest

from headrace_server.api.ending import Ending
from headrace_server.errors import Draining
from tests.fakes.server import Process

pytestmark = pytest.mark.timeout(30)


class FakeDrain:
    """A drain that is over when the test says so.

    Attributes:
        asked: the seconds that each caller gave.
        over: ends it; `num_cut` is what it then answers.
    """

    def __init__(self, *, num_open: int = 1) -> None:
        self.is_draining = False
        self.num_open = num_open
        self.num_cut = 0
        self.num_hastened = 0
        self.asked: list[float] = []
        self.begun = asyncio.Event()
        self.over = asyncio.Event()

    async def run(self, seconds: float) -> int:
        self.is_draining = True
        self.asked.append(seconds)
        self.begun.set()
        await self.over.wait()
        return self.num_cut

    def hasten(self) -> None:
        self.num_hastened += 1


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def drain() -> FakeDrain:
    return FakeDrain()


@pytest.fixture
def ending(process: Process, drain: FakeDrain) -> Ending:
    ending = Ending(seconds=30.0, stop=process.stop)
    ending.attach(drain)
    return ending


async def test_the_process_stops_once_the_server_has_drained(
    ending: Ending, drain: FakeDrain, process: Process
) -> None:
    draining = asyncio.create_task(ending.drain(5.0))
    await drain.begun.wait()
    assert (drain.asked, process.num_stops) == ([5.0], 0)
    drain.num_cut = 2
    drain.over.set()
    assert await draining == 2
    assert process.num_stops == 1


async def test_without_a_deadline_the_configured_one_counts(ending: Ending, drain: FakeDrain) -> None:
    drain.over.set()
    assert await ending.drain() == 0
    assert drain.asked == [30.0]


async def test_a_deadline_of_nothing_is_one(ending: Ending, drain: FakeDrain) -> None:
    drain.over.set()
    await ending.drain(0.0)
    assert drain.asked == [0.0]


async def test_who_leaves_stops_waiting_and_not_the_drain(ending: Ending, drain: FakeDrain, process: Process) -> None:
    draining = asyncio.create_task(ending.drain())
    await drain.begun.wait()
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    assert process.num_stops == 0
    drain.over.set()
    assert await ending.drain() == 0
    assert process.num_stops == 2


async def test_before_there_is_anything_to_drain_the_process_stops_at_once(process: Process) -> None:
    ending = Ending(stop=process.stop)
    assert (ending.is_draining, ending.num_open) == (False, 0)
    ending.hasten()
    assert await ending.begin() == 0
    assert process.num_stops == 1
    assert ending.is_draining


async def test_what_is_open_is_what_the_drain_says(ending: Ending, drain: FakeDrain) -> None:
    drain.num_open = 7
    assert (ending.is_draining, ending.num_open) == (False, 7)
    drain.is_draining = True
    assert ending.is_draining
    ending.hasten()
    assert drain.num_hastened == 1


async def test_work_that_ends_before_the_server_is_not_disturbed(ending: Ending) -> None:
    async def work() -> str:
        return "done"

    assert await ending.unless_ended(work()) == "done"


async def test_what_work_raises_is_raised(ending: Ending) -> None:
    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ending.unless_ended(work())


@pytest.mark.parametrize("before", [True, False])
async def test_work_is_cancelled_when_the_server_stops(ending: Ending, before: bool) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    if before:
        ending.end()
    waiting = asyncio.create_task(ending.unless_ended(work()))
    await begun.wait()
    ending.end()
    with pytest.raises(Draining) as raised:
        await waiting
    assert cancelled.is_set()
    assert raised.value.retry_after_seconds


async def test_cancelling_who_waits_cancels_the_work(ending: Ending) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    waiting = asyncio.create_task(ending.unless_ended(work()))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cancelled.is_set()


async def test_closing_ends_a_drain_that_is_not_over(ending: Ending, drain: FakeDrain, process: Process) -> None:
    task = ending.begin()
    await drain.begun.wait()
    await ending.close()
    assert task.cancelled()
    assert process.num_stops == 0
