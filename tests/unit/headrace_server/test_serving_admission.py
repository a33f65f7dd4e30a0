"""The seat: every request asks once, holds at most one ticket, and gives it back, whatever happens to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.api.sse import KEEP_ALIVE
from headrace_server.domain import GENERATING, Demand, EngineRequest, ModelId, Operation, RequestId, StreamReply
from headrace_server.engine.base import EngineSpec
from headrace_server.engine.synthetic_engine import SyntheticEngine
from headrace_server.errors import Contended, DeadlineExpired, EngineDown, RequestError
from headrace_server.generation import Delta
from headrace_server.serving.admission import OpenAdmission, RequestSeat
from headrace_server.tenancy.keys import EVERYONE
from tests.fakes.admission import FakeAdmission
from tests.fakes.engine import FakeEngine, FakeStream, Hold, frame
from tests.fakes.engine_requests import frames_of
from tests.fakes.generation import FakeDeltas, generation, said
from tests.fakes.server import ALIAS, MODEL, Stage, build_stage, running, serve_app
from tests.fakes.virtual_loop import turns

pytestmark = pytest.mark.timeout(60)

DEMAND = Demand(5, 10)


def request(model: ModelId = MODEL, *, stream: bool = False) -> EngineRequest:
    return EngineRequest(Operation.CHAT, model, RequestId("r"), EVERYONE, {"model": model}, stream=stream)


class Asking:
    """A request's seat, before an admission that the test opens."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.admission = FakeAdmission(is_open=is_open)
        self.place = self.admission.enter(request(), self)
        self.seat = RequestSeat(self.place)

    def cut(self, error: RequestError) -> None:
        """Not of interest."""

    def restart(self) -> None:
        """Not of interest."""

    def take(self, demand: Demand = DEMAND) -> asyncio.Task[None]:
        """Somebody who asks."""
        return asyncio.create_task(self.seat.take(demand))


class TestSeat:
    """One request's claim."""

    async def test_it_joins_once_and_holds_its_place_until_it_is_released(self) -> None:
        asking = Asking()
        taking = asking.take()
        await asking.admission.entered.wait()
        assert (taking.done(), asking.seat.is_taken) == (False, False)
        asking.admission.let_in()
        await taking
        assert (asking.place.demands, asking.seat.is_taken) == ([DEMAND], True)
        assert asking.admission.num_tickets == 1
        asking.seat.release()
        asking.seat.release()
        assert (asking.admission.num_tickets, asking.place.is_over) == (0, True)

    async def test_however_many_ask_at_once_only_one_joins_and_all_wait_for_it(self) -> None:
        asking = Asking()
        taking = [asking.take(Demand(number, 0)) for number in range(5)]
        await turns()
        assert asking.place.demands == [Demand(0, 0)]
        assert not any(task.done() for task in taking)
        asking.admission.let_in()
        await asyncio.gather(*taking)
        await asking.seat.take(DEMAND)
        assert (len(asking.place.demands), asking.admission.num_tickets) == (1, 1)

    async def test_a_turn_that_has_come_already_costs_no_turn_of_the_loop(self) -> None:
        asking = Asking(is_open=True)
        with pytest.raises(StopIteration):
            asking.seat.take(DEMAND).send(None)
        assert asking.seat.is_taken

    async def test_a_refusal_is_raised_to_all_and_nobody_asks_again(self) -> None:
        asking, refusal = Asking(), Contended("later")
        taking = [asking.take() for _ in range(3)]
        await turns()
        asking.admission.refuse(refusal)
        results = await asyncio.gather(*taking, return_exceptions=True)
        assert results == [refusal] * 3
        with pytest.raises(Contended):
            await asking.seat.take(DEMAND)
        assert (len(asking.place.demands), asking.seat.is_taken) == (1, False)
        asking.seat.release()

    async def test_if_one_of_several_gives_up_the_others_still_get_their_turn(self) -> None:
        asking = Asking()
        leaving, staying = asking.take(), asking.take()
        await turns()
        leaving.cancel()
        await turns()
        asking.admission.let_in()
        await staying
        assert (leaving.cancelled(), asking.admission.num_tickets) == (True, 1)

    async def test_whoever_waits_when_the_request_ends_is_cancelled(self) -> None:
        asking = Asking()
        taking = asking.take()
        await asking.admission.entered.wait()
        asking.seat.release()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert asking.admission.withdrawn.is_set()
        assert (asking.admission.num_waiting, asking.admission.num_tickets) == (0, 0)

    async def test_a_request_that_is_over_does_not_ask(self) -> None:
        asking = Asking()
        asking.seat.release()
        with pytest.raises(asyncio.CancelledError):
            await asking.seat.take(DEMAND)
        assert asking.place.demands == []

    @pytest.mark.parametrize("for_want_of_an_engine", [True, False])
    async def test_one_that_was_sent_back_is_not_taken_and_joins_again(self, for_want_of_an_engine: bool) -> None:
        asking = Asking()
        taking = asking.take()
        await turns()
        asking.admission.let_in()
        await taking
        (asking.seat.lose_engine if for_want_of_an_engine else asking.seat.go_back)()
        assert not asking.seat.is_taken
        assert (asking.place.num_losses, asking.place.num_returns) == ((1, 0) if for_want_of_an_engine else (0, 1))
        taking = asking.take()
        await turns()
        assert not taking.done()
        asking.admission.let_in()
        await taking
        assert (len(asking.place.demands), asking.seat.is_taken) == (2, True)

    async def test_the_open_admission_lets_everyone_in_and_counts_them(self) -> None:
        admission = OpenAdmission()
        seats = [RequestSeat(admission.enter(request(), Asking())) for _ in range(3)]
        for number, seat in enumerate(seats, start=1):
            await seat.take(DEMAND)
            await seat.take(DEMAND)
            assert admission.num_tickets == number
        seats[0].go_back()
        seats[1].lose_engine()
        assert admission.num_tickets == 1
        await seats[0].take(DEMAND)
        assert admission.num_tickets == 2
        for seat in (*seats, *seats):
            seat.release()
        assert admission.num_tickets == 0

    @given(actions=st.lists(st.sampled_from(["take", "cancel", "let in", "refuse", "turn", "back"]), max_size=25))
    async def test_whatever_happens_there_is_at_most_one_ticket_and_none_at_the_end(self, actions: list[str]) -> None:
        asking = Asking()
        taking: list[asyncio.Task[None]] = []
        for action in actions:
            match action:
                case "take":
                    taking.append(asking.take())
                case "cancel" if taking:
                    taking[len(taking) // 2].cancel()
                case "let in" if asking.admission.num_waiting:
                    asking.admission.let_in()
                case "refuse" if asking.admission.num_waiting:
                    asking.admission.refuse(Contended("later"))
                case "back":
                    asking.seat.go_back()
                case _:
                    await turns()
            assert asking.admission.num_tickets + asking.admission.num_waiting <= 1
        asking.seat.release()
        await asyncio.gather(*taking, return_exceptions=True)
        assert (asking.admission.num_tickets, asking.admission.num_waiting) == (0, 0)


class TestTicketsOfRequests:
    """The ticket goes with the lease."""

    @asynccontextmanager
    async def begin(self, engine: FakeEngine) -> AsyncIterator[tuple[Stage, FakeAdmission]]:
        gate = FakeAdmission(is_open=False)
        stage = build_stage(engine, admission=gate)
        async with running(stage.runtime.pool) as pool:
            await pool.until_settled()
            yield stage, gate
            assert self.held(stage, gate) == (0, 0)

    def held(self, stage: Stage, gate: FakeAdmission) -> tuple[int, int]:
        """Tickets and leases."""
        return gate.num_tickets, stage.num_leases

    async def test_it_is_asked_for_under_the_models_id_and_held_while_the_engine_works(self) -> None:
        hold = Hold()
        async with self.begin(FakeEngine([hold])) as (stage, gate):
            call = asyncio.create_task(stage.runtime.inference.submit(request(ALIAS)))
            await gate.entered.wait()
            assert not hold.entered.is_set()
            assert self.held(stage, gate) == (0, 1)
            gate.let_in()
            await hold.entered.wait()
            assert self.held(stage, gate) == (1, 1)
            assert [place.request.model for place in gate.places] == [MODEL]
            hold.go_on.set()
            await call
            assert self.held(stage, gate) == (0, 0)

    @pytest.mark.parametrize("failure", [EngineDown("gone"), ZeroDivisionError()])
    async def test_a_failing_engine_gives_it_back(self, failure: Exception) -> None:
        async with self.begin(FakeEngine([failure])) as (stage, gate):
            call = asyncio.create_task(stage.runtime.inference.submit(request()))
            await gate.entered.wait()
            gate.let_in()
            with pytest.raises(type(failure)):
                await call
            assert self.held(stage, gate) == (0, 0)

    @pytest.mark.parametrize("refusal", [Contended("later"), DeadlineExpired("too late")])
    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_refusal_is_the_answer_and_gives_the_lease_back(self, refusal: RequestError, stream: bool) -> None:
        async with self.begin(FakeEngine()) as (stage, gate):
            call = asyncio.create_task(stage.runtime.inference.submit(request(stream=stream)))
            await gate.entered.wait()
            gate.refuse(refusal)
            with pytest.raises(RequestError) as caught:
                await call
            assert caught.value is refusal
            assert self.held(stage, gate) == (0, 0)

    async def test_a_call_that_is_cancelled_while_it_waits_is_withdrawn(self) -> None:
        async with self.begin(FakeEngine()) as (stage, gate):
            call = asyncio.create_task(stage.runtime.inference.submit(request()))
            await gate.entered.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert gate.withdrawn.is_set()
            assert self.held(stage, gate) == (0, 0)

    async def test_a_generation_in_one_piece_gives_it_back_with_its_end_its_failure_or_its_cancellation(self) -> None:
        failing, endless = FakeDeltas(), FakeDeltas([Delta(0, "a", 1)])
        failing.fail(EngineDown("gone"))
        for deltas in (said([Delta(0, "a", 1, "stop")]), said([Delta(0, "a", 1)]), failing, endless):
            async with self.begin(FakeEngine([generation(deltas)])) as (stage, gate):
                call = asyncio.create_task(stage.runtime.inference.submit(request()))
                await gate.entered.wait()
                gate.let_in()
                if deltas is endless:
                    await deltas.asked.wait()
                    assert self.held(stage, gate) == (1, 1)
                    call.cancel()
                await asyncio.wait({call})
                assert self.held(stage, gate) == (0, 0)
                assert deltas.closed.is_set()

    @asynccontextmanager
    async def streamed(self, deltas: FakeDeltas) -> AsyncIterator[tuple[StreamReply, Stage, FakeAdmission]]:
        async with self.begin(FakeEngine([generation(deltas)])) as (stage, gate):
            call = asyncio.create_task(stage.runtime.inference.submit(request(stream=True)))
            await gate.entered.wait()
            gate.let_in()
            reply = await call
            assert isinstance(reply, StreamReply)
            assert self.held(stage, gate) == (1, 1)
            yield reply, stage, gate

    async def test_a_stream_that_is_read_to_its_end_gives_it_back(self) -> None:
        async with self.streamed(said([Delta(0, "a", 1, "stop")])) as (reply, stage, gate):
            events = aiter(reply.events)
            await anext(events)
            assert self.held(stage, gate) == (1, 1)
            assert await anext(events) == b"data: [DONE]\n\n"
            assert [event async for event in events] == []
            assert self.held(stage, gate) == (0, 0)

    async def test_a_stream_that_fails_gives_it_back(self) -> None:
        async with self.streamed(said([Delta(0, "a", 1)])) as (reply, stage, gate):
            events = aiter(reply.events)
            await anext(events)
            with pytest.raises(RequestError):
                await anext(events)
            assert self.held(stage, gate) == (0, 0)

    @pytest.mark.parametrize("num_reads", [0, 1])
    async def test_a_stream_that_is_closed_gives_it_back_even_if_it_was_never_read(self, num_reads: int) -> None:
        deltas = FakeDeltas([Delta(0, "a", 1)])
        async with self.streamed(deltas) as (reply, stage, gate):
            for _ in range(num_reads):
                await anext(aiter(reply.events))
            await reply.events.aclose()
            assert self.held(stage, gate) == (0, 0)
            assert deltas.was_aborted
            assert deltas.num_asked == num_reads

    async def test_a_read_that_is_cancelled_gives_it_back(self) -> None:
        deltas = FakeDeltas()
        async with self.streamed(deltas) as (reply, stage, gate):
            read = asyncio.ensure_future(anext(aiter(reply.events)))
            await deltas.asked.wait()
            read.cancel()
            with pytest.raises(asyncio.CancelledError):
                await read
            await reply.events.aclose()
            assert self.held(stage, gate) == (0, 0)


# ------------------------------------------------------------------------------------------------------ over HTTP

CHAT: dict[str, object] = {"messages": [{"role": "user", "content": "hello"}]}
BODIES: dict[Operation, dict[str, object]] = {
    Operation.CHAT: CHAT,
    Operation.COMPLETION: {"prompt": ["hello", "world"]},
    Operation.RESPONSE: {"input": "hello"},
    Operation.MESSAGE: {**CHAT, "max_tokens": 5},
    Operation.COUNT_TOKENS: CHAT,
    Operation.EMBEDDING: {"input": ["hello", "world"]},
    Operation.RERANK: {"query": "hello", "documents": ["a", "b"]},
    Operation.SCORE: {"text_1": "hello", "text_2": "world"},
    Operation.TOKENIZE: {"prompt": "hello"},
    Operation.DETOKENIZE: {"tokens": [1, 2]},
}
REQUESTS = [(operation, stream) for operation in Operation for stream in (False, True)[: 1 + (operation in GENERATING)]]


@asynccontextmanager
async def serving(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real server; no lease is held once it has stopped."""
    async with serve_app(stage.app) as base_url, httpx.AsyncClient(base_url=base_url, trust_env=False) as client:
        yield client
    assert stage.num_leases == 0


def body_of(operation: Operation, *, stream: bool) -> dict[str, object]:
    return {"model": MODEL, **BODIES[operation], **({"stream": True} if stream else {})}


def synthetic() -> SyntheticEngine:
    return SyntheticEngine(EngineSpec(ModelId(MODEL), "synthetic"))


class TestOverHttp:
    """What a client sees of admission."""

    @pytest.mark.parametrize("where", ["door_error", "join_error"])
    @pytest.mark.parametrize(("operation", "stream"), REQUESTS)
    async def test_every_operation_passes_on_a_refusal_and_the_engine_does_nothing(
        self, operation: Operation, stream: bool, where: str
    ) -> None:
        engine = synthetic()
        admission = FakeAdmission()
        setattr(admission, where, Contended("others are first", retry_after_seconds=1.5))
        stage = build_stage(engine, admission=admission)
        async with serving(stage) as client:
            response = await client.post(operation.value, json=body_of(operation, stream=stream))
        assert response.status_code == 429
        assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("2", "1500")
        assert response.headers["content-type"] == "application/json"
        assert response.json()["error"] == {
            "message": "others are first",
            "type": "rate_limit_error",
            "param": None,
            "code": "contended",
        }
        stats = engine.stats()
        assert (stats.prompt_tokens_total, stats.generation_tokens_total) == (0, 0)

    @pytest.mark.parametrize(("operation", "stream"), REQUESTS)
    async def test_every_operation_takes_one_ticket_and_gives_it_back(self, operation: Operation, stream: bool) -> None:
        admission = FakeAdmission()
        async with serving(build_stage(synthetic(), admission=admission)) as client:
            response = await client.post(operation.value, json=body_of(operation, stream=stream))
            assert response.status_code == 200
            assert (admission.num_joins, admission.num_tickets) == (1, 0)

    async def test_nothing_is_sent_while_a_stream_waits_for_its_ticket_and_its_events_follow(self) -> None:
        gate, engine = FakeAdmission(is_open=False), FakeEngine([generation(said([Delta(0, "a", 1, "stop")]))])
        async with serving(build_stage(engine, admission=gate)) as client:
            answer = asyncio.create_task(client.post(Operation.CHAT, json=body_of(Operation.CHAT, stream=True)))
            await gate.entered.wait()
            assert not answer.done()
            gate.let_in()
            frames = frames_of([(await answer).content])
        assert [frame.data["choices"][0]["delta"].get("content") for frame in frames[:-1]] == ["", "a"]
        assert frames[-1].data == "[DONE]"

    async def test_a_stream_that_waits_too_long_gets_headers_and_comments_and_then_its_events(self) -> None:
        gate, engine = FakeAdmission(is_open=False), FakeEngine([FakeStream(frame("a"))])
        stage = build_stage(engine, admission=gate, hold_seconds=0.01)
        async with serving(stage) as client, opened(client) as response:
            pieces = response.aiter_raw()
            await comments(pieces, 3)
            assert engine.num_open_streams == 0
            gate.let_in()
            assert (await anext_event(pieces)) == frame("a")

    async def test_a_stream_that_is_refused_after_comments_ends_in_an_error_event(self) -> None:
        gate, engine = FakeAdmission(is_open=False), FakeEngine()
        stage = build_stage(engine, admission=gate, hold_seconds=0.01)
        async with serving(stage) as client, opened(client) as response:
            assert response.status_code == 200
            pieces = response.aiter_raw()
            await comments(pieces, 1)
            gate.refuse(Contended("others are first", retry_after_seconds=1.5))
            (last,) = frames_of([await anext_event(pieces)])
            assert last.data["error"]["code"] == "contended"
            assert [piece async for piece in pieces] == []
        assert engine.streams == []

    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_client_that_leaves_while_it_waits_is_withdrawn(self, stream: bool) -> None:
        gate, engine = FakeAdmission(is_open=False), FakeEngine()
        async with serving(build_stage(engine, admission=gate)) as client:
            answer = asyncio.create_task(client.post(Operation.CHAT, json=body_of(Operation.CHAT, stream=stream)))
            await gate.entered.wait()
            answer.cancel()
            await gate.withdrawn.wait()
        assert (gate.num_waiting, gate.num_tickets) == (0, 0)

    async def test_a_client_that_leaves_among_the_comments_is_withdrawn(self) -> None:
        gate, engine = FakeAdmission(is_open=False), FakeEngine()
        async with serving(build_stage(engine, admission=gate, hold_seconds=0.01)) as client:
            async with opened(client) as response:
                await comments(response.aiter_raw(), 1)
                assert not gate.withdrawn.is_set()
            await gate.withdrawn.wait()
        assert (gate.num_waiting, gate.num_tickets) == (0, 0)

    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_client_that_leaves_after_it_was_admitted_gives_the_ticket_back(self, stream: bool) -> None:
        admission, deltas = OpenAdmission(), FakeDeltas()
        async with serving(build_stage(FakeEngine([generation(deltas)]), admission=admission)) as client:
            answer = asyncio.create_task(client.post(Operation.CHAT, json=body_of(Operation.CHAT, stream=stream)))
            await deltas.asked.wait()
            assert admission.num_tickets == 1
            answer.cancel()
            await deltas.closed.wait()
        assert deltas.was_aborted
        assert admission.num_tickets == 0


@asynccontextmanager
async def opened(client: httpx.AsyncClient) -> AsyncIterator[httpx.Response]:
    async with client.stream("POST", Operation.CHAT.value, json=body_of(Operation.CHAT, stream=True)) as response:
        yield response


async def comments(pieces: AsyncIterator[bytes], num_comments: int) -> None:
    """Read so many pieces, which must be comments only."""
    for _ in range(num_comments):
        assert (await anext(pieces)).replace(KEEP_ALIVE, b"") == b""


async def anext_event(pieces: AsyncIterator[bytes]) -> bytes:
    """The next piece, without the comments."""
    async for piece in pieces:
        if event := piece.replace(KEEP_ALIVE, b""):
            return event
    raise AssertionError("the stream ended")
