"""What a case is: one request in both forms, and what makes it worth asking."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace_server.api.schemas.chat import ChatCompletionRequest
from headrace_server.api.schemas.common import WireRequest
from headrace_server.api.schemas.completion import CompletionRequest
from headrace_server.domain import Operation
from tests.engine.differential.engines import EngineKind

_WIRE_MODELS: Mapping[Operation, type[WireRequest]] = {
    Operation.CHAT: ChatCompletionRequest,
    Operation.COMPLETION: CompletionRequest,
}
USAGE_AT_THE_END: Mapping[str, object] = {"include_usage": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request that both sides get, once for a document and once for a stream.

    `shows` looks at vLLM's document and says whether the case is about what its `sentence` says: a tool was called, a
    character was split. `token_by_token`: the stream's pieces must be the same ones, in one of a few attempts.
    """

    sentence: str
    request: Mapping[str, object] = field(repr=False)
    shows: Callable[[Any], object] = field(default=bool, repr=False)
    operation: Operation = Operation.CHAT
    engine: EngineKind = EngineKind.CHAT
    stream_options: Mapping[str, object] | None = field(default_factory=lambda: USAGE_AT_THE_END)
    token_by_token: bool = False

    def payload(self, *, stream: bool) -> dict[str, Any]:
        """The request as our HTTP edge would hand it on."""
        body = {"model": self.engine.value, "temperature": 0.0, **self.request}
        if stream:
            body["stream"] = True
            body |= {"stream_options": dict(self.stream_options)} if self.stream_options is not None else {}
        return _WIRE_MODELS[self.operation].model_validate(body).payload()


def user(text: str) -> list[dict[str, Any]]:
    """A conversation of one turn."""
    return [{"role": "user", "content": text}]


def first(document: Any) -> Any:
    """The first choice."""
    return document["choices"][0]


def content(document: Any) -> str:
    """What the first choice of a chat says, "" for nothing."""
    return first(document)["message"]["content"] or ""


def finished(reason: str) -> Callable[[Any], bool]:
    """Whether the first choice ended so."""
    return lambda document: first(document)["finish_reason"] == reason
