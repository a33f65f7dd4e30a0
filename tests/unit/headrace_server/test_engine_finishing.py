"""Ends that go on to their end, whoever cancels the one who waits for them."""

import asyncio

import pytest

from headrace_server.engine.finishing import ended, finished
from tests.fakes.virtual_loop import now, turns, virtually


async def work(seconds: float, error: Exception | None = None) -> str:
    await asyncio.sleep(seconds)
    if error is not None:
        raise error
    return "done"


@virtually
async def test_what_comes_of_the_work_is_handed_on() -> None:
    assert await finished(work(3)) == "done"
    with pytest.raises(ZeroDivisionError):
        await finished(work(3, ZeroDivisionError()))
    assert now() == 1006.0


@pytest.mark.parametrize("num_cancels", [1, 2, 3])
@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
@virtually
async def test_a_cancellation_comes_once_the_work_is_over(num_cancels: int, error: Exception | None) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    task = asyncio.create_task(finished(work(10, error)))
    for _ in range(num_cancels):
        await asyncio.sleep(1)
        task.cancel()
        await turns()
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == 1010.0
    del task
    assert complaints == []


@virtually
async def test_several_are_cancelled_together_and_waited_for() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(5)

    futures = [asyncio.ensure_future(stubborn()) for _ in range(3)]
    over = asyncio.ensure_future(stubborn())
    over.cancel()
    await turns()
    ending = asyncio.create_task(ended(*futures, over))
    await turns()
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert now() == 1005.0
    assert all(future.cancelled() for future in futures)


@virtually
async def test_failures_of_what_is_ended_are_nobodys() -> None:
    failed = asyncio.ensure_future(work(0, ZeroDivisionError()))
    await turns()
    await ended(failed, asyncio.ensure_future(work(9)))
    await ended()
    assert now() == 1000.0
