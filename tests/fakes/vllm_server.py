"""A stand-in for vLLM's own OpenAI server, as vllm-metal runs it on a Mac: vLLM's API server with another platform.

What it answers is written down from vLLM's source (github.com/vllm-project/vllm; vllm-metal's installer builds vLLM
0.24, this project's engine is 0.32, and the parts used here say the same in both):

- models: entrypoints/serve/engine/protocol.py (`ModelCard`, `ModelPermission`, `UsageInfo`, `ErrorInfo`), with several
  served names the first one is in every answer (openai/models/serving.py, `model_name`);
- `/health` 200 without a body, 503 once the engine is dead (serve/instrumentator/health.py); `/version`; `/metrics`;
- an unknown model: 404, type NotFoundError, param model, a numeric code; an unknown path: Starlette's `{"detail": "Not
  Found"}`; embeddings exist with `--runner pooling` only, chat only without;
- streams: openai/chat_completion/serving.py; the usage is an event without choices before `[DONE]`; an engine that
  fails in a stream is told as `{"error": …}` and then `[DONE]`;
- while the model loads nothing listens: connections are refused.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.fakes.upstream_server import Dropped, Exchange

WORDS = ("The", " capital", " of", " France", " is", " Paris", ".")
NUM_PROMPT_TOKENS = 11
VECTOR = (0.6, 0.8)
METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 0.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.0
"""


@dataclass(eq=False)
class FakeVllm:
    """A handler for `FakeUpstream`; a test may set every attribute.

    Attributes:
        served_names: `--served-model-name`; the first one is in the answers.
        is_pooling: `--runner pooling`.
        is_dead: its engine has died.
        may_begin: nothing is answered to a request before this is set.
        drops_after, fails_after: a stream's connection breaks, or its engine fails, after so many words.
        stays_open: a stream goes on until its client is gone; then `gone` is set.
        num_running: requests that are being answered; `has_come` is set with the first one.
    """

    served_names: Sequence[str] = ("mlx-community/Qwen3-0.6B-4bit",)
    is_pooling: bool = False
    is_dead: bool = False
    max_model_len: int = 4096
    may_begin: asyncio.Event = field(default_factory=asyncio.Event)
    drops_after: int | None = None
    fails_after: int | None = None
    stays_open: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    num_running: int = 0
    has_come: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_begin.set()

    async def __call__(self, exchange: Exchange) -> None:
        match exchange.method, exchange.path:
            case "GET", "/health":
                await exchange.answer(b"", status=503 if self.is_dead else 200)
            case "GET", "/version":
                await exchange.answer({"version": "0.24.0"})
            case "GET", "/metrics":
                await exchange.answer(METRICS.encode(), headers={"content-type": "text/plain; version=0.0.4"})
            case "GET", "/v1/models":
                await exchange.answer({"object": "list", "data": [self._card(name) for name in self.served_names]})
            case "POST", path if path in self._operations:
                await self._operate(exchange)
            case _:
                await exchange.answer({"detail": "Not Found"}, status=404)

    @property
    def _operations(self) -> frozenset[str]:
        pooling = {"/v1/embeddings", "/pooling"}
        generating = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}
        return frozenset({*(pooling if self.is_pooling else generating), "/tokenize", "/detokenize"})

    def _card(self, name: str) -> dict[str, object]:
        permission = {"id": "modelperm-1", "object": "model_permission", "created": 1, "allow_view": True}
        card = {"id": name, "object": "model", "created": 1, "owned_by": "vllm", "root": self.served_names[0]}
        return {**card, "parent": None, "max_model_len": self.max_model_len, "permission": [permission]}

    async def _operate(self, exchange: Exchange) -> None:
        request = exchange.json
        if request["model"] not in self.served_names:
            message = f"The model `{request['model']}` does not exist."
            await exchange.answer(error(message, "NotFoundError", 404, param="model"), status=404)
        elif self.is_dead:
            message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            await exchange.answer(error(message, "InternalServerError", 500), status=500)
        elif request.get("max_tokens", 1) > self.max_model_len:
            message = f"max_tokens={request['max_tokens']} cannot be greater than max_model_len={self.max_model_len}."
            await exchange.answer(error(message, "BadRequestError", 400, param="max_tokens"), status=400)
        else:
            await self._answer(exchange, request)

    async def _answer(self, exchange: Exchange, request: dict[str, Any]) -> None:
        self.num_running += 1
        self.has_come.set()
        try:
            await self._begun(exchange)
            if request.get("stream"):
                await self._stream(exchange, request)
            else:
                await exchange.answer(self._document(exchange.path, request))
        finally:
            self.num_running -= 1

    async def _begun(self, exchange: Exchange) -> None:
        """Wait, unless the client leaves: vLLM aborts what nobody waits for (`with_cancellation`)."""
        begun, gone = asyncio.ensure_future(self.may_begin.wait()), asyncio.ensure_future(exchange.until_gone())
        try:
            await asyncio.wait((begun, gone), return_when=asyncio.FIRST_COMPLETED)
            if not begun.done():
                self.gone.set()
                raise Dropped
        finally:
            for waiting in (begun, gone):
                waiting.cancel()
            await asyncio.gather(begun, gone, return_exceptions=True)

    def _document(self, path: str, request: dict[str, Any]) -> dict[str, object]:
        base = {"id": "cmpl-1", "created": 1, "model": self.served_names[0], "usage": usage(len(WORDS))}
        text = "".join(WORDS)
        match path:
            case "/v1/embeddings":
                data = [{"index": 0, "object": "embedding", "embedding": list(VECTOR)}]
                return {**base, "object": "list", "data": data, "usage": usage(0)}
            case "/v1/completions":
                choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
                return {**base, "object": "text_completion", "choices": [choice]}
            case _:
                message: dict[str, object] = {
                    "role": "assistant",
                    "content": text,
                    "refusal": None,
                    "tool_calls": [],
                    "reasoning": None,
                }
                choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
                return {**base, "object": "chat.completion", "choices": [choice], "prompt_logprobs": None}

    async def _stream(self, exchange: Exchange, request: dict[str, Any]) -> None:
        await exchange.open()
        for number, event in enumerate(self._events(exchange.path, request)):
            if number == self.drops_after:
                raise Dropped
            if number == self.fails_after:
                await exchange.send(sse(error("EngineCore encountered an issue.", "InternalServerError", 500)))
                break
            await exchange.send(sse(event))
            if self.stays_open:
                await exchange.until_gone()
                self.gone.set()
                return
        await exchange.end(b"data: [DONE]\n\n")

    def _events(self, path: str, request: dict[str, Any]) -> Iterator[dict[str, object]]:
        is_chat = path == "/v1/chat/completions"
        base = {"id": "chatcmpl-1", "created": 1, "model": self.served_names[0]}
        base["object"] = "chat.completion.chunk" if is_chat else "text_completion"
        options = request.get("stream_options") or {}
        if is_chat:
            yield {**base, "choices": [choice_of({"delta": {"role": "assistant", "content": ""}})]}
        for word in WORDS:
            yield {**base, "choices": [choice_of({"delta": {"content": word}} if is_chat else {"text": word})]}
        last = {"delta": {"content": ""}} if is_chat else {"text": ""}
        yield {**base, "choices": [{**choice_of(last), "finish_reason": "stop", "stop_reason": None}]}
        if options.get("include_usage"):
            yield {**base, "choices": [], "usage": usage(len(WORDS))}


def choice_of(content: Mapping[str, object]) -> dict[str, object]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": None}


def usage(num_output_tokens: int) -> dict[str, object]:
    total = NUM_PROMPT_TOKENS + num_output_tokens
    counts = {"prompt_tokens": NUM_PROMPT_TOKENS, "total_tokens": total, "completion_tokens": num_output_tokens}
    return {**counts, "prompt_tokens_details": None}


def error(message: str, kind: str, code: int, *, param: str | None = None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def sse(event: dict[str, object]) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"
