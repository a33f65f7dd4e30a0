"""The drain: nobody new, time for those who are in, and a clear end for those who take too long."""

import asyncio

import pytest

from headrace_server.errors import Draining, RequestError
from headrace_server.serving.drain import Drain
from tests.fakes.virtual_loop import now, turns, virtually

FEW_SECONDS = 10.0


class Request:
    """An open request. One that is cut says goodbye for `seconds_to_end`; None: it never ends."""

    def __init__(self, drain: Drain, *, seconds_to_end: float | None = 0.0) -> None:
        self.cuts: list[RequestError] = []
        self._drain = drain
        self._seconds_to_end = seconds_to_end
        drain.enter(self)

    def cut(self, error: RequestError) -> None:
        self.cuts.append(error)
        if self._seconds_to_end is not None:
            asyncio.get_running_loop().call_later(self._seconds_to_end, self.end)

    def end(self) -> None:
        self._drain.leave(self)


@virtually
async def test_open_requests_are_counted_each_once() -> None:
    drain = Drain()
    first, second = Request(drain), Request(drain)
    drain.enter(first)
    assert drain.num_open == 2
    first.end()
    first.end()
    assert drain.num_open == 1
    second.end()
    assert (drain.num_open, drain.is_draining) == (0, False)


@virtually
async def test_once_it_has_begun_nobody_is_admitted_and_those_who_are_in_stay() -> None:
    drain = Drain()
    request = Request(drain)
    drain.begin()
    drain.begin()
    with pytest.raises(Draining) as caught:
        Request(drain)
    assert caught.value.retry_after_seconds
    assert (drain.is_draining, drain.num_open, request.cuts) == (True, 1, [])


@virtually
async def test_it_waits_for_those_who_are_in_and_cuts_nobody_who_is_in_time() -> None:
    drain = Drain()
    requests = [Request(drain) for _ in range(3)]
    for number, request in enumerate(requests):
        asyncio.get_running_loop().call_later(10.0 * (number + 1), request.end)
    since = now()
    assert await drain.run(31.0) == 0
    assert now() - since == 30.0
    assert all(request.cuts == [] for request in requests)
    await asyncio.sleep(100)
    assert drain.num_open == 0


@virtually
async def test_it_is_over_at_once_where_nothing_is_open() -> None:
    drain, since = Drain(), now()
    assert await drain.run(3600.0) == 0
    assert now() == since


@virtually
async def test_those_who_take_too_long_are_cut_once_and_may_say_goodbye() -> None:
    drain = Drain()
    quick, slow, slower = Request(drain), Request(drain), Request(drain, seconds_to_end=3.0)
    asyncio.get_running_loop().call_later(10.0, quick.end)
    since = now()
    assert await drain.run(30.0) == 2
    assert now() - since == 33.0
    assert quick.cuts == []
    for request in (slow, slower):
        (error,) = request.cuts
        assert isinstance(error, Draining)
        assert error.retry_after_seconds
    assert slow.cuts[0] is not slower.cuts[0]


@virtually
async def test_a_request_that_does_not_end_after_its_cut_holds_the_drain_for_a_few_seconds_only() -> None:
    drain, since = Drain(), now()
    stuck = Request(drain, seconds_to_end=None)
    assert await drain.run(30.0) == 1
    assert 30.0 < now() - since <= 30.0 + FEW_SECONDS
    assert drain.num_open == 1
    stuck.end()


@virtually
async def test_hastening_cuts_at_once_and_only_once() -> None:
    drain = Drain()
    request = Request(drain, seconds_to_end=1.0)
    waiting = asyncio.create_task(drain.run(3600.0))
    await asyncio.sleep(5)
    since = now()
    drain.hasten()
    drain.hasten()
    assert await waiting == 1
    assert now() - since == 1.0
    assert len(request.cuts) == 1


@virtually
async def test_hastening_begins_the_drain_and_who_asks_later_hears_how_many_were_cut() -> None:
    drain = Drain()
    request = Request(drain)
    drain.hasten()
    assert drain.is_draining
    assert len(request.cuts) == 1
    assert await drain.run(3600.0) == 1
    assert await drain.run(0.0) == 1
    assert len(request.cuts) == 1


@virtually
async def test_of_several_callers_the_earliest_deadline_counts_and_all_wait_for_the_end() -> None:
    drain = Drain()
    Request(drain, seconds_to_end=1.0)
    since = now()
    callers = [asyncio.create_task(drain.run(seconds)) for seconds in (100.0, 20.0, 50.0)]
    assert await asyncio.gather(*callers) == [1, 1, 1]
    assert now() - since == 21.0


@virtually
async def test_a_caller_who_leaves_does_not_take_its_deadline_to_the_others_nor_end_the_drain() -> None:
    drain = Drain()
    request = Request(drain)
    leaving, staying = asyncio.create_task(drain.run(10.0)), asyncio.create_task(drain.run(100.0))
    await turns()
    leaving.cancel()
    await asyncio.sleep(50)
    assert leaving.cancelled()
    assert (drain.is_draining, request.cuts) == (True, [])
    request.end()
    assert await staying == 0
