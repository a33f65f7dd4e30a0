"""The seat under vLLM's own serving objects: every request takes it before the engine works, and a refusal stays one.

Importing vLLM takes 10 s; no engine starts: a stand-in for the engine client is wrapped in the gated one.
"""

import asyncio
import importlib
import importlib.util
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace_server.domain import Demand, EngineRequest, Operation, ServiceClass, StreamReply
from headrace_server.errors import Contended, EngineFault, RequestError
from tests.fakes.engine_requests import OpenSeat, engine_request

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),  # importing vLLM warns about itself
    pytest.mark.timeout(120),
]

PROMPT = {"type": "token", "prompt_token_ids": [1, 2, 3]}
SAMPLING = SimpleNamespace(max_tokens=5, n=2, output_kind=None)
MESSAGE = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
REQUEST = engine_request(Operation.MESSAGE, MESSAGE)
REFUSAL = Contended("others are first", retry_after_seconds=1.5)


class ClosedSeat:
    """A seat that is refused."""

    is_favoured = False

    async def take(self, demand: Demand) -> None:
        raise REFUSAL

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        raise AssertionError("it was refused")

    def generated(self, num_tokens: int) -> None:
        raise AssertionError("it was refused")


class Inner:
    """vLLM's engine client; remembers what reached it."""

    model_config = SimpleNamespace(is_encoder_decoder=False)

    def __init__(self) -> None:
        self.num_asked = 0
        self.prompts: list[Any] = []
        self.priorities: list[int] = []

    async def generate(self, prompt: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        self.num_asked += 1
        self.prompts.append(prompt)
        self.priorities.append(kwargs["priority"])
        yield SimpleNamespace(outputs=[])

    encode = generate


class House:
    """The adapter's parts around one stand-in for the engine."""

    def __init__(self) -> None:
        self._seat_module = importlib.import_module("headrace_server.engine.vllm_seat")
        self._serving_module = importlib.import_module("headrace_server.engine.vllm_serving")
        self._translated = importlib.import_module("headrace_server.engine.vllm_errors").translated
        self.inner = Inner()
        client_module = importlib.import_module("headrace_server.engine.vllm_gated_client")
        self.client = client_module.GatedEngineClient(self.inner)

    def seat(self, seat: Any, request: EngineRequest = REQUEST) -> None:
        """From here on, this task asks for `seat`."""
        self._seat_module.using_seat(seat, request)

    def serving(self, **state: Any) -> Any:
        """`VllmServing` on serving objects of the test."""
        names = (place[0] for place in self._serving_module._HANDLERS.values())
        objects = dict.fromkeys(names) | state
        return self._serving_module.VllmServing(SimpleNamespace(**objects), self._translated)

    def messages(self) -> Any:
        """A serving object whose streams are made by vLLM's own two generators for Anthropic's API."""
        kind = importlib.import_module("vllm.entrypoints.anthropic.serving").AnthropicServingMessages
        chat = importlib.import_module("vllm.entrypoints.openai.chat_completion.protocol").ChatCompletionRequest
        serving = object.__new__(kind)
        serving.parser_cls, serving.enable_force_include_usage = None, False
        asked = chat(messages=[{"role": "user", "content": "hello"}])

        async def create_messages(request: Any, raw_request: Any) -> Any:
            outputs = self.client.generate(PROMPT, SAMPLING)
            chunks = serving.chat_completion_stream_generator(asked, outputs, "r1", "mill", [], None, None)
            return serving.message_stream_converter(chunks)

        return SimpleNamespace(create_messages=create_messages, count_tokens=_no_answer)


async def _no_answer(request: Any, raw_request: Any) -> Any:
    return importlib.import_module("starlette.responses").Response(b"{}")


@pytest.fixture(scope="module", autouse=True)
def _vllm() -> None:
    """vLLM is imported before the first test's clock runs."""
    House()


class TestGatedClient:
    """Nothing passes without a seat."""

    @pytest.mark.parametrize(("method", "demand"), [("generate", Demand(3, 10, 2)), ("encode", Demand(3, 0))])
    async def test_the_seat_is_taken_for_what_the_prompt_asks_before_the_engine_is(
        self, method: str, demand: Demand
    ) -> None:
        house, seat = House(), OpenSeat()
        house.seat(seat)
        outputs = getattr(house.client, method)(PROMPT, SAMPLING)
        assert (seat.demands, house.inner.num_asked) == ([], 0)
        assert len([output async for output in outputs]) == 1
        assert (seat.demands, house.inner.num_asked) == ([demand], 1)

    @pytest.mark.parametrize("method", ["generate", "encode"])
    async def test_a_refusal_is_raised_and_the_engine_is_not_asked(self, method: str) -> None:
        house = House()
        house.seat(ClosedSeat())
        with pytest.raises(Contended):
            await anext(getattr(house.client, method)(PROMPT, SAMPLING))
        assert house.inner.num_asked == 0

    @pytest.mark.parametrize("method", ["generate", "encode"])
    async def test_the_engine_is_told_the_requests_own_priority_and_salt_and_nobody_elses(self, method: str) -> None:
        house = House()
        salted = {**PROMPT, "cache_salt": "the client's"}
        batch = replace(REQUEST, service_class=ServiceClass.BATCH, cache_salt="the tenant's")
        favoured = OpenSeat()
        favoured.is_favoured = True
        for request, prompt, seat in (
            (batch, salted, OpenSeat()),
            (batch, PROMPT, favoured),
            (REQUEST, salted, OpenSeat()),
        ):
            house.seat(seat, request)
            assert [output async for output in getattr(house.client, method)(prompt, SAMPLING, priority=-7)]
        assert house.inner.prompts == [{**PROMPT, "cache_salt": "the tenant's"}] * 2 + [PROMPT]
        assert house.inner.priorities == [5, 4, 3], "the lowest is served first"
        assert salted["cache_salt"] == "the client's", "the caller's own prompt was changed"

    async def test_a_request_without_a_seat_is_a_fault(self) -> None:
        house = House()
        with pytest.raises(EngineFault, match="without a seat"):
            await anext(house.client.generate(PROMPT, SAMPLING))
        assert house.inner.num_asked == 0


class TestServing:
    """vLLM's serving objects with a seat."""

    async def streamed(self, serving: Any, seat: Any, operation: Operation = Operation.MESSAGE) -> StreamReply:
        reply = await serving.submit(engine_request(operation, MESSAGE, stream=True), seat)
        assert isinstance(reply, StreamReply)
        return reply

    async def test_a_refused_stream_of_messages_is_refused_as_admission_said(self) -> None:
        house = House()
        reply = await self.streamed(house.serving(anthropic_serving_messages=house.messages()), ClosedSeat())
        with pytest.raises(RequestError) as caught:
            await anext(aiter(reply.events))
        assert house.inner.num_asked == 0
        assert caught.value is REFUSAL

    async def test_a_refused_stream_shows_nothing_that_was_made_before(self) -> None:
        house = House()

        async def frames() -> AsyncIterator[str]:
            yield "data: announced\n\n"
            async for _ in house.client.generate(PROMPT, SAMPLING):
                yield "data: made\n\n"

        serving = house.serving(anthropic_serving_messages=_answering(frames))
        refused = await self.streamed(serving, ClosedSeat())
        with pytest.raises(Contended):
            await anext(aiter(refused.events))
        admitted = await self.streamed(serving, OpenSeat())
        assert [event async for event in admitted.events] == [b"data: announced\n\ndata: made\n\n"]

    async def test_a_stream_that_asks_its_engine_again_later_still_has_its_seat(self) -> None:
        house, seat = House(), OpenSeat()

        async def frames() -> AsyncIterator[str]:
            for _ in range(2):  # as the Responses API does after a built-in tool's turn
                async for _ in house.client.generate(PROMPT, SAMPLING):
                    yield "data: made\n\n"

        async def begun() -> StreamReply:
            reply = await self.streamed(house.serving(anthropic_serving_messages=_answering(frames)), seat)
            assert await anext(aiter(reply.events))
            return reply

        reply = await asyncio.create_task(begun())
        assert [event async for event in reply.events] == [b"data: made\n\n"]

    @pytest.mark.parametrize("operation", [Operation.TOKENIZE, Operation.DETOKENIZE, Operation.COUNT_TOKENS])
    async def test_what_needs_no_engine_takes_the_seat_too(self, operation: Operation) -> None:
        house, seat = House(), OpenSeat()
        serving = house.serving(
            anthropic_serving_messages=SimpleNamespace(create_messages=_no_answer, count_tokens=_no_answer),
            serving_tokenization=SimpleNamespace(create_tokenize=_no_answer, create_detokenize=_no_answer),
        )
        payloads: dict[Operation, dict[str, object]] = {
            Operation.TOKENIZE: {"prompt": "hello"},
            Operation.DETOKENIZE: {"tokens": [1]},
            Operation.COUNT_TOKENS: {"messages": MESSAGE["messages"]},
        }
        assert await serving.submit(engine_request(operation, payloads[operation]), seat)
        assert len(seat.demands) == 1


def _answering(frames: Any) -> Any:
    async def create_messages(request: Any, raw_request: Any) -> Any:
        return frames()

    return SimpleNamespace(create_messages=create_messages, count_tokens=_no_answer)
