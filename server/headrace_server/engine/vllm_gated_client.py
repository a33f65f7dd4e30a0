"""The seam between vLLM's serving objects and its engine: an `EngineClient` of ours around the real one.

vLLM's serving classes take any `EngineClient`. Handing them this one puts every token of every endpoint through our
hands, so that admission, charging and aborts can live here without a line changed in vLLM. For now it passes
everything through; `generate` and `encode` return the engine's own generators, so the seam costs nothing per token.
"""

from collections.abc import AsyncGenerator, Iterable
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.outputs import PoolingRequestOutput, RequestOutput


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
        """Admission was decided before vLLM is asked; its own queue limits stay in force where configured."""
        self.inner.check_admission(n, request_id)

    def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        outputs: AsyncGenerator[RequestOutput, None] = self.inner.generate(*args, **kwargs)
        return outputs

    def encode(self, *args: Any, **kwargs: Any) -> AsyncGenerator[PoolingRequestOutput, None]:
        outputs: AsyncGenerator[PoolingRequestOutput, None] = self.inner.encode(*args, **kwargs)
        return outputs

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
