"""The seam between vLLM's serving objects and its engine: an `EngineClient` of ours around the real one.

vLLM's serving classes take any `EngineClient`. Handing them this one puts every prompt of every endpoint through our
hands: it takes the request's seat before the engine is asked, without a line changed in vLLM. Which request that is,
the calling task's context says.
"""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.inputs import EngineInput
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.pooling_params import PoolingParams
from vllm.renderers.inputs.preprocess import extract_prompt_len
from vllm.sampling_params import RequestOutputKind, SamplingParams

from headrace_server.domain import Demand, Seat
from headrace_server.engine.vllm_stats import StepCounters
from headrace_server.errors import EngineFault, RequestError


class SeatInUse:
    """A request's seat, while vLLM's serving objects work on the request."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self.is_taken = False
        self.refusal: RequestError | None = None

    def use(self) -> None:
        """From here on, what the calling task and its children ask of the engine is asked for this seat."""
        _current.set(self)

    async def take(self, demand: Demand) -> None:
        """See `Seat.take`."""
        try:
            await self._seat.take(demand)
        except RequestError as error:
            self.refusal = error
            raise
        self.is_taken = True

    def began(self, num_computed_tokens: int, num_cached_tokens: int) -> None:
        """See `Seat.began`."""
        self._seat.began(num_computed_tokens, num_cached_tokens)

    def generated(self, num_tokens: int) -> None:
        """See `Seat.generated`."""
        self._seat.generated(num_tokens)


_current: ContextVar[SeatInUse | None] = ContextVar("seat_in_use", default=None)


def using_seat(seat: Seat) -> SeatInUse:
    """From here on, what the calling task and its children ask of the engine is asked for this seat."""
    place = SeatInUse(seat)
    place.use()
    return place


class _Delegated:
    """An attribute that is the wrapped client's."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: "GatedEngineClient | None", owner: type) -> Any:
        return self if instance is None else getattr(instance.inner, self._name)


class GatedEngineClient(EngineClient):
    """Wraps `inner`; whatever is not gated is the inner client's own."""

    def __init__(self, inner: EngineClient, counters: StepCounters) -> None:
        self.inner = inner
        self._counters = counters

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """vLLM's own queue limits stay in force where configured; ours are asked after tokenising."""
        self.inner.check_admission(n, request_id)

    async def generate(
        self, prompt: EngineInput, sampling_params: SamplingParams, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """`inner.generate` once the request has its seat."""
        num_tokens = self._num_tokens(prompt)
        await _seat().take(Demand(num_tokens, (sampling_params.max_tokens or 0) * sampling_params.n))
        count = _TokenCount(self._counters, num_tokens, sampling_params.output_kind)
        async with aclosing(self.inner.generate(prompt, sampling_params, *args, **kwargs)) as outputs:
            async for output in outputs:
                count.add(output)
                yield output

    async def encode(
        self, prompt: EngineInput, pooling_params: PoolingParams, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """`inner.encode` once the request has its seat."""
        num_tokens = self._num_tokens(prompt)
        await _seat().take(Demand(num_tokens, 0))
        async with aclosing(self.inner.encode(prompt, pooling_params, *args, **kwargs)) as outputs:
            async for output in outputs:
                yield output
        self._counters.began(num_tokens)

    def _num_tokens(self, prompt: EngineInput) -> int:
        length: int = extract_prompt_len(self.inner.model_config, prompt)
        return length

    async def abort(self, request_id: str | Iterable[str]) -> None:
        await self.inner.abort(request_id)


class _TokenCount:
    """Counts a generation's tokens, whether its outputs bring the new ones or all so far."""

    def __init__(self, counters: StepCounters, num_prompt_tokens: int, kind: RequestOutputKind) -> None:
        self._counters = counters
        self._num_prompt_tokens = num_prompt_tokens
        self._repeats = kind is RequestOutputKind.CUMULATIVE
        self._num_seen = 0

    def add(self, output: RequestOutput) -> None:
        self._counters.began(self._num_prompt_tokens)
        self._num_prompt_tokens = 0
        num_tokens = sum(len(choice.token_ids) for choice in output.outputs)
        self._counters.generated(num_tokens - self._num_seen)
        self._num_seen = num_tokens if self._repeats else 0


def _seat() -> SeatInUse:
    place = _current.get()
    if place is None:
        raise EngineFault("a request reached the engine without a seat")
    return place


def _delegate_the_rest() -> None:
    gated = set(vars(GatedEngineClient))
    names = {name for name in {*vars(EngineClient), *EngineClient.__annotations__} if not name.startswith("_")}
    for name in names - gated:
        attribute = _Delegated()
        attribute.__set_name__(GatedEngineClient, name)
        setattr(GatedEngineClient, name, attribute)
    GatedEngineClient.__abstractmethods__ = frozenset()


_delegate_the_rest()
