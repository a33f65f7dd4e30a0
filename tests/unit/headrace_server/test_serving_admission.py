"""The seat: every request asks once, holds at most one ticket, and gives it back, whatever happens to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

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
from tests.fakes.engine import FakeEngine, FakeStream, Hold, frame
from tests.fakes.engine_requests import frames_of
from tests.fakes.generation import FakeDeltas, generation, said
from tests.fakes.server import ALIAS, MODEL, Stage, build_stage, running, serve_app

pytestmark = pytest.mark.timeout(60)

DEMAND = Demand(5, 10)
TURNS = 20  # of the loop; more than anything here needs to come to rest


class Gate:
    """An `Admission` that the test opens.

    Attributes:
        asked: what was asked for, in order.
        entered: set while somebody waits.
        withdrawn: set once somebody who waited has gone.
        num_tickets: given out and not given back.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[EngineRequest, Demand]] = []
        self.entered = asyncio.Event()
        self.withdrawn = asyncio.Event()
        self.num_tickets = 0
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def let_in(self) -> None:
        """Admit whoever waits longest."""
        turn = self._waiting.pop(0)
        if not turn.done():  # done: cancelled, and its task has not run since
            turn.set_result(None)

    def refuse(self, error: RequestError) -> None:
        """Turn away whoever waits longest."""
        turn = self._waiting.pop(0)
        if not turn.done():
            turn.set_exception(error)

    async def admit(self, request: EngineRequest, demand: Demand) -> "GateTicket":
        self.asked.append((request, demand))
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.entered.set()
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            self.withdrawn.set()
            raise
        return GateTicket(self)


class GateTicket:
    """May be given back once."""

    def __init__(self, gate: Gate) -> None:
        self._gate: Gate | None = gate
        gate.num_tickets += 1

    def release(self) -> None:
        assert self._gate is not None, "a ticket was given back twice"
        self._gate.num_tickets -= 1
        self._gate = None


class Refusing:
    """Turns every request away."""

    def __init__(self, error: RequestError) -> None:
        self._error = error

    async def admit(self, request: EngineRequest, demand: Demand) -> GateTicket:
        raise self._error


def request(model: ModelId = MODEL, *, stream: bool = False) -> EngineRequest:
    return EngineRequest(Operation.CHAT, model, RequestId("r"), EVERYONE, {"model": model}, stream=stream)


async def turns() -> None:
    """Let every task go as far as it can."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


class TestSeat:
    """One request's claim."""

    async def test_it_asks_for_its_request_and_holds_the_ticket_until_it_is_released(self) -> None:
        gate, asked = Gate(), request()
        seat = RequestSeat(gate, asked)
        taking = asyncio.create_task(seat.take(DEMAND))
        await gate.entered.wait()
        assert not taking.done()
        gate.let_in()
        await taking
        assert gate.asked == [(asked, DEMAND)]
        assert gate.num_tickets == 1
        seat.release()
        seat.release()
        assert gate.num_tickets == 0

    async def test_however_many_ask_at_once_only_one_ticket_is_taken_and_all_wait_for_it(self) -> None:
        gate = Gate()
        seat = RequestSeat(gate, request())
        taking = [asyncio.create_task(seat.take(Demand(number, 0))) for number in range(5)]
        await turns()
        assert gate.num_waiting == 1
        assert not any(task.done() for task in taking)
        gate.let_in()
        await asyncio.gather(*taking)
        await seat.take(DEMAND)
        assert (len(gate.asked), gate.num_tickets) == (1, 1)

    async def test_a_refusal_is_raised_and_leaves_nothing_to_give_back(self) -> None:
        gate, refusal = Gate(), Contended("later")
        seat = RequestSeat(gate, request())
        taking = asyncio.create_task(seat.take(DEMAND))
        await gate.entered.wait()
        gate.refuse(refusal)
        with pytest.raises(Contended) as caught:
            await taking
        assert caught.value is refusal
        seat.release()
        assert gate.num_tickets == 0

    async def test_a_request_that_was_refused_does_not_ask_again(self) -> None:
        gate = Gate()
        seat = RequestSeat(gate, request())
        taking = [asyncio.create_task(seat.take(DEMAND)) for _ in range(3)]
        await turns()
        gate.refuse(Contended("later"))
        await turns()
        for task in taking:
            task.cancel()
        results = await asyncio.gather(*taking, return_exceptions=True)
        assert len(gate.asked) == 1
        assert [type(result) for result in results] == [Contended] * 3

    async def test_cancelling_the_one_who_waits_withdraws_the_request(self) -> None:
        gate = Gate()
        seat = RequestSeat(gate, request())
        taking = asyncio.create_task(seat.take(DEMAND))
        await gate.entered.wait()
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        seat.release()
        assert gate.withdrawn.is_set()
        assert (gate.num_waiting, gate.num_tickets) == (0, 0)

    async def test_if_one_of_several_gives_up_the_others_still_get_their_ticket(self) -> None:
        gate = Gate()
        seat = RequestSeat(gate, request())
        leaving, staying = (asyncio.create_task(seat.take(DEMAND)) for _ in range(2))
        await turns()
        leaving.cancel()
        await turns()
        gate.let_in()
        await staying
        assert (leaving.cancelled(), gate.num_tickets) == (True, 1)

    async def test_a_ticket_that_comes_after_the_request_is_over_goes_straight_back(self) -> None:
        gate = Gate()
        seat = RequestSeat(gate, request())
        taking = asyncio.create_task(seat.take(DEMAND))
        await gate.entered.wait()
        seat.release()
        gate.let_in()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert gate.num_tickets == 0

    async def test_a_request_that_is_over_does_not_ask(self) -> None:
        gate = Gate()
        seat = RequestSeat(gate, request())
        seat.release()
        taking = asyncio.create_task(seat.take(DEMAND))
        await turns()
        taking.cancel()
        with suppress(asyncio.CancelledError):
            await taking
        assert gate.asked == []

    async def test_the_open_admission_lets_everyone_in_and_counts_them(self) -> None:
        admission = OpenAdmission()
        seats = [RequestSeat(admission, request()) for _ in range(3)]
        for number, seat in enumerate(seats, start=1):
            await seat.take(DEMAND)
            await seat.take(DEMAND)
            assert admission.num_tickets == number
        for seat in (*seats, *seats):
            seat.release()
        assert admission.num_tickets == 0

    @given(actions=st.lists(st.sampled_from(["take", "cancel", "let in", "refuse", "turn", "release"]), max_size=25))
    async def test_whatever_happens_there_is_at_most_one_ticket_and_none_at_the_end(self, actions: list[str]) -> None:
        gate = Gate()
        seat = RequestSeat(gate, request())
        taking: list[asyncio.Task[None]] = []
        for action in actions:
            match action:
                case "take":
                    taking.append(asyncio.create_task(seat.take(DEMAND)))
                case "cancel" if taking:
                    taking[len(taking) // 2].cancel()
                case "let in" if gate.num_waiting:
                    gate.let_in()
                case "refuse" if gate.num_waiting:
                    gate.refuse(Contended("later"))
                case "release":
                    seat.release()
                case _:
                    await turns()
            assert gate.num_tickets <= 1
            assert gate.num_waiting <= 1
        seat.release()
        for task in taking:
            task.cancel()
        await asyncio.gather(*taking, return_exceptions=True)
        assert (gate.num_tickets, gate.num_waiting) == (0, 0)


class TestTicketsOfRequests:
    """The ticket goes with the lease."""

    @asynccontextmanager
    async def begin(self, engine: FakeEngine) -> AsyncIterator[tuple[Stage, Gate]]:
        gate = Gate()
        stage = build_stage(engine, admission=gate)
        async with running(stage.runtime.pool) as pool:
            await pool.until_settled()
            yield stage, gate
            assert self.held(stage, gate) == (0, 0)

    def held(self, stage: Stage, gate: Gate) -> tuple[int, int]:
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
            assert [asked.model for asked, _ in gate.asked] == [MODEL]
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
    async def streamed(self, deltas: FakeDeltas) -> AsyncIterator[tuple[StreamReply, Stage, Gate]]:
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

    @pytest.mark.parametrize(("operation", "stream"), REQUESTS)
    async def test_every_operation_passes_on_a_refusal_and_the_engine_does_nothing(
        self, operation: Operation, stream: bool
    ) -> None:
        engine = synthetic()
        stage = build_stage(engine, admission=Refusing(Contended("others are first", retry_after_seconds=1.5)))
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
        admission = _Counting()
        async with serving(build_stage(synthetic(), admission=admission)) as client:
            response = await client.post(operation.value, json=body_of(operation, stream=stream))
            assert response.status_code == 200
            assert (admission.num_admitted, admission.num_tickets) == (1, 0)

    async def test_nothing_is_sent_while_a_stream_waits_for_its_ticket_and_its_events_follow(self) -> None:
        gate, engine = Gate(), FakeEngine([generation(said([Delta(0, "a", 1, "stop")]))])
        async with serving(build_stage(engine, admission=gate)) as client:
            answer = asyncio.create_task(client.post(Operation.CHAT, json=body_of(Operation.CHAT, stream=True)))
            await gate.entered.wait()
            assert not answer.done()
            gate.let_in()
            frames = frames_of([(await answer).content])
        assert [frame.data["choices"][0]["delta"].get("content") for frame in frames[:-1]] == ["", "a"]
        assert frames[-1].data == "[DONE]"

    async def test_a_stream_that_waits_too_long_gets_headers_and_comments_and_then_its_events(self) -> None:
        gate, engine = Gate(), FakeEngine([FakeStream(frame("a"))])
        stage = build_stage(engine, admission=gate, hold_seconds=0.01)
        async with serving(stage) as client, opened(client) as response:
            pieces = response.aiter_raw()
            await comments(pieces, 3)
            assert engine.num_open_streams == 0
            gate.let_in()
            assert (await anext_event(pieces)) == frame("a")

    async def test_a_stream_that_is_refused_after_comments_ends_in_an_error_event(self) -> None:
        gate, engine = Gate(), FakeEngine()
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
        gate, engine = Gate(), FakeEngine()
        async with serving(build_stage(engine, admission=gate)) as client:
            answer = asyncio.create_task(client.post(Operation.CHAT, json=body_of(Operation.CHAT, stream=stream)))
            await gate.entered.wait()
            answer.cancel()
            await gate.withdrawn.wait()
        assert (gate.num_waiting, gate.num_tickets) == (0, 0)

    async def test_a_client_that_leaves_among_the_comments_is_withdrawn(self) -> None:
        gate, engine = Gate(), FakeEngine()
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


class _Counting(OpenAdmission):
    """Counts whom it lets in."""

    def __init__(self) -> None:
        super().__init__()
        self.num_admitted = 0

    async def admit(self, request: EngineRequest, demand: Demand) -> Any:
        self.num_admitted += 1
        return await super().admit(request, demand)


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
