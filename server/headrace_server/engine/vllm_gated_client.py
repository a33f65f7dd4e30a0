"""The seam between vLLM's serving objects and its engine: an `EngineClient` of ours around the real one.

vLLM's serving classes take any `EngineClient`. Handing them this one puts every prompt of every endpoint through our
hands: it takes the request's seat before the engine is asked, without a line changed in vLLM, and gives the engine the
request's own priority and salt, whatever vLLM's objects made of theirs.
"""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.inputs import EngineInput
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.pooling_params import PoolingParams
from vllm.renderers.inputs.preprocess import extract_prompt_len
from vllm.sampling_params import SamplingParams

from headrace_server.domain import Demand
from headrace_server.engine.vllm_seat import required_seat


class _Delegated:
    """An attribute that is the wrapped client's."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: "GatedEngineClient | None", owner: type) -> Any:
        return self if instance is None else getattr(instance.inner, self._name)


class GatedEngineClient(EngineClient):
    """Wraps `inner`; whatever is not gated is the inner client's own."""

    def __init__(self, inner: EngineClient) -> None:
        self.inner = inner

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """vLLM's own queue limits stay in force where configured; ours are asked after tokenising."""
        self.inner.check_admission(n, request_id)

    async def generate(
        self, prompt: EngineInput, sampling_params: SamplingParams, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """`inner.generate` once the request has its seat."""
        seat, n = required_seat(), sampling_params.n
        await seat.take(Demand(self._num_tokens(prompt), (sampling_params.max_tokens or 0) * n, n))
        options = {**kwargs, "priority": seat.priority}
        async with aclosing(self.inner.generate(seat.salted(prompt), sampling_params, *args, **options)) as outputs:
            async for output in outputs:
                yield output

    async def encode(
        self, prompt: EngineInput, pooling_params: PoolingParams, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """`inner.encode` once the request has its seat."""
        seat = required_seat()
        await seat.take(Demand(self._num_tokens(prompt), 0))
        options = {**kwargs, "priority": seat.priority}
        async with aclosing(self.inner.encode(seat.salted(prompt), pooling_params, *args, **options)) as outputs:
            async for output in outputs:
                yield output

    def _num_tokens(self, prompt: EngineInput) -> int:
        length: int = extract_prompt_len(self.inner.model_config, prompt)
        return length

    async def abort(self, request_id: str | Iterable[str]) -> None:
        await self.inner.abort(request_id)


def _delegate_the_rest() -> None:
    gated = set(vars(GatedEngineClient))
    names = {name for name in {*vars(EngineClient), *EngineClient.__annotations__} if not name.startswith("_")}
    for name in names - gated:
        attribute = _Delegated()
        attribute.__set_name__(GatedEngineClient, name)
        setattr(GatedEngineClient, name, attribute)
    GatedEngineClient.__abstractmethods__ = frozenset()


_delegate_the_rest()
