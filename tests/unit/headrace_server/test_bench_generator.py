"""headrace_server.bench.generator and side: blocks of requests against a scripted server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from headrace_server.bench import measures
from headrace_server.bench.arrivals import BlockPlan, ClosedLoop, Load, PlannedRequest, Poisson
from headrace_server.bench.endpoint import Endpoint
from headrace_server.bench.generator import GIVE_UP_AFTER_FAILURES, send_block
from headrace_server.bench.http_client import ConnectionPool
from headrace_server.bench.process_table import ProcessId
from headrace_server.bench.processes import ServerProcesses
from headrace_server.bench.side import Asking, HttpSide, SideFailed, open_side
from headrace_server.bench.summary import Slo
from headrace_server.errors import UsageError
from tests.unit.headrace_server.bench_support import Scripted, Send, sending, serving, stream_reply, whole

ASKING = Asking(model="m", timeout_seconds=5)
LOAD = Load(ClosedLoop(2), num_requests=6, num_tokens=3, num_warm_up=2)


def side_of(endpoint: Endpoint) -> HttpSide:
    return HttpSide("a", endpoint, ASKING, slo=Slo(), processes=None)


@asynccontextmanager
async def counting(num_streams: int) -> AsyncIterator[tuple[Endpoint, list[int]]]:
    """A server that answers nobody until `num_streams` wait for it, and tells how many did."""
    waiting = 0
    seen: list[int] = []
    everyone = asyncio.Condition()

    async def script(send: Send, _: bytes) -> None:
        nonlocal waiting
        waiting += 1
        seen.append(waiting)
        async with everyone:
            everyone.notify_all()
            await everyone.wait_for(lambda: max(seen) >= num_streams)
        waiting -= 1
        await send(stream_reply(3))

    async with serving(script) as (endpoint, _):
        yield endpoint, seen


async def test_a_closed_loop_keeps_its_number_of_streams_busy_and_no_more() -> None:
    async with counting(4) as (endpoint, seen):
        await side_of(endpoint).run_block(replace(LOAD, arrivals=ClosedLoop(4), num_warm_up=0, num_requests=12), 0)
    assert max(seen) == 4
    assert len(seen) == 12


async def test_an_open_loop_waits_for_nobody() -> None:
    """All eight requests have come before the first is answered."""
    load = replace(LOAD, arrivals=Poisson(2000.0), num_requests=8, num_warm_up=0)
    async with counting(8) as (endpoint, seen):
        result = await side_of(endpoint).run_block(load, 0)
    assert max(seen) == 8
    assert result.tally.num_complete == 8


async def test_requests_of_an_open_loop_are_never_early() -> None:
    plan = BlockPlan(tuple(PlannedRequest("a", 3, 0.01 * place) for place in range(5)), None)
    async with serving(sending(stream_reply(3))) as (endpoint, _):
        with ConnectionPool(endpoint) as pool:
            traffic = await send_block(pool, plan, [b"GET / HTTP/1.1\r\n\r\n"] * 5, timeout_seconds=5)
    assert [exchange.place for exchange in traffic.exchanges] == [0, 1, 2, 3, 4]
    for exchange in traffic.exchanges:
        assert exchange.due_at is not None
        assert not isinstance(exchange.came, Exception)
        assert exchange.came.sent_at >= exchange.due_at - 0.001  # timers are exact to a millisecond


async def test_warm_up_requests_are_sent_and_not_counted() -> None:
    async with serving(sending(stream_reply(3))) as (endpoint, scripted):
        result = await side_of(endpoint).run_block(LOAD, 0)
    assert len(scripted.requests) == 8
    assert result.tally.num_sent == 6
    assert result.num_tokens == 18
    assert set(result.figures) >= {measures.THROUGHPUT, measures.TTFT_P99, measures.GOODPUT}


async def test_refusals_and_failures_are_counted_beside_answers() -> None:
    parts = [stream_reply(3), whole(b"busy", status=b"429 Busy"), stream_reply(2)]
    answers = iter(parts * 2)

    async def script(send: Send, _: bytes) -> None:
        await send(next(answers))

    async with serving(script) as (endpoint, _):
        result = await side_of(endpoint).run_block(replace(LOAD, num_warm_up=0), 0)
    assert (result.tally.num_complete, dict(result.tally.refused), result.tally.num_failed) == (2, {429: 2}, 2)
    assert result.num_tokens == 6


async def test_a_server_that_answers_nothing_is_given_up() -> None:
    async with serving(sending(hang_up=True)) as (endpoint, scripted):
        with pytest.raises(SideFailed, match="a completed none of 17 requests: the server closed the connection"):
            await side_of(endpoint).run_block(replace(LOAD, num_requests=500, num_warm_up=0), 0)
    assert len(scripted.requests) == GIVE_UP_AFTER_FAILURES + 1  # two streams: one more was under way


async def test_a_server_whose_process_has_ended_is_given_up_even_if_it_answered_before() -> None:
    answers = iter([stream_reply(3), b"SSH\r\n\r\n"] * 3)

    async def script(send: Send, _: bytes) -> None:
        await send(next(answers))

    nobody = ServerProcesses(ProcessId(2**22 + 1))
    async with serving(script) as (endpoint, _):
        side = HttpSide("a", endpoint, ASKING, slo=Slo(), processes=nobody)
        with pytest.raises(SideFailed, match="a has ended: the reply is not HTTP"):
            await side.run_block(replace(LOAD, num_warm_up=0), 0)


async def test_leaving_a_block_leaves_no_request_behind() -> None:
    came = asyncio.Event()

    async def script(send: Send, _: bytes) -> None:
        came.set()
        await asyncio.Event().wait()

    async with serving(script) as (endpoint, _):
        block = asyncio.ensure_future(side_of(endpoint).run_block(LOAD, 0))
        await came.wait()
        block.cancel()
        with pytest.raises(asyncio.CancelledError):
            await block


def models_and(chat: bytes, models: bytes = b'{"data": [{"id": "first"}, {"id": "second"}]}') -> Scripted:
    async def script(send: Send, request: bytes) -> None:
        await send(whole(models) if request.startswith(b"GET /v1/models") else chat)

    return Scripted(script)


async def opened(scripted: Scripted, asking: Asking) -> HttpSide:
    async with scripted.serving() as endpoint:
        return await open_side("a", endpoint, asking, slo=Slo(), processes=None)


async def test_the_first_model_that_the_server_lists_is_asked() -> None:
    scripted = models_and(whole(b"{}"))
    side = await opened(scripted, Asking(api_key="k"))
    assert side.model == "first"
    assert all(b"authorization: Bearer k" in request for request in scripted.requests)


@pytest.mark.parametrize(
    ("asking", "chat", "models", "message"),
    [
        (Asking(), whole(b"{}"), b'{"data": []}', "a: /v1/models lists no model; --model names one"),
        (Asking(), whole(b"{}"), b"no", "a: /v1/models lists no model"),
        (
            Asking(model="x"),
            whole(b'{"error": {"message": "no such model"}}', status=b"404 Not Found"),
            b"",
            "a: model 'x': answered 404: no such model",
        ),
        (
            Asking(model="x"),
            whole(b'{"error": {"message": "bad key"}}', status=b"401 Unauthorized"),
            b"",
            "a: answered 401: bad key; --api-key or OPENAI_API_KEY takes a key",
        ),
    ],
)
async def test_what_cannot_be_measured_is_one_line(asking: Asking, chat: bytes, models: bytes, message: str) -> None:
    with pytest.raises(UsageError) as failure:
        await opened(models_and(chat, models), asking)
    assert str(failure.value).startswith(message)


async def test_a_refused_connection_is_one_line() -> None:
    async with serving(sending()) as (endpoint, _):
        pass
    with pytest.raises(UsageError, match=rf"a: {endpoint.authority}: no connection"):
        await open_side("a", endpoint, ASKING, slo=Slo(), processes=None)
