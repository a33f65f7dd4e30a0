"""A stand-in for Docker Model Runner, in front of engines that it loads at their first request.

What it answers is written down from its source (github.com/docker/model-runner, v1.2) and Docker's documentation
(docs.docker.com/ai/model-runner/api-reference):

- routes (pkg/inference/scheduling/http_handler.go, pkg/inference/models/http_handler.go): `/engines/v1/…` and
  `/engines/{backend}/v1/…` for chat completions, completions, embeddings and models, `/engines/rerank` and
  `/engines/score` without `v1`, `/models` for its own form of the list; everything else is "not found";
- its own errors are Go's `http.Error`: plain text, `text/plain; charset=utf-8`, `X-Content-Type-Options: nosniff`:
  404 "model not found", 400 "model is required", 500 "unable to load runner: …", 503 "service unavailable";
- the list names models by their tags, `docker.io/ai/smollm2:latest` where a request may say `ai/smollm2`
  (pkg/inference/models/api.go, `ToOpenAI`), and knows no context length;
- the first request waits, without headers, until its engine has loaded (runner.go: `/health` every 0.5 s, for 300 s);
  then it is passed on with the path from `/v1/` on, and so is the answer, the engine's errors included;
- an engine that goes away in the middle: 500 with `{"type": "error", …}`, or 502 without a body;
- vLLM is started with `--served-model-name DIGEST NAME` (backends/vllm), so that its answers carry the digest;
- llama.cpp, the usual engine, says 503 `{"error": {"code": 503, "message": "Loading model", "type":
  "unavailable_error"}}` (github.com/ggml-org/llama.cpp, tools/server) should it still load;
- Docker Desktop has all of it behind its socket, below `/exp/vDD4.40`.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.fakes.upstream_server import Exchange
from tests.fakes.vllm_server import FakeVllm

NAME = "ai/smollm2"
TAG = "docker.io/ai/smollm2:latest"
DIGEST = "sha256:354bf30d0aa3af413d2aa5ae4f23c66d78980072d1e07a5b0d776e9606a2f0b9"
SOCKET_PREFIX = "/exp/vDD4.40"

_ROUTE = re.compile(r"/engines(?:/(?P<backend>[^/]+))?(?P<path>/v1/.+|/rerank|/score)")
_TEXT = {"content-type": "text/plain; charset=utf-8", "x-content-type-options": "nosniff"}
_OPERATIONS = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/rerank", "/score"}


@dataclass(eq=False)
class FakeModelRunner:
    """A handler for `FakeUpstream`; a test may set every attribute.

    Attributes:
        engine: what answers once it has loaded; both backends are this one.
        prefix: below which everything is.
        is_loaded: whether a request has loaded the engine, which takes until `may_load` is set; `is_asked` is set when
            the load begins.
        load_failure: what a load ends in, if it fails.
        is_stopping: it is going away.
    """

    engine: FakeVllm = field(default_factory=lambda: FakeVllm(served_names=(DIGEST, NAME)))
    prefix: str = ""
    may_load: asyncio.Event = field(default_factory=asyncio.Event)
    is_asked: asyncio.Event = field(default_factory=asyncio.Event)
    is_loaded: bool = False
    load_failure: str | None = None
    is_stopping: bool = False
    overriding: Callable[[Exchange], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        self.may_load.set()

    async def __call__(self, exchange: Exchange) -> None:
        if not exchange.path.startswith(f"{self.prefix}/"):
            await refused(exchange, 404, "404 page not found")
            return
        path = exchange.path.removeprefix(self.prefix)
        match = _ROUTE.fullmatch(path)
        if exchange.method == "GET" and path == "/models":
            await exchange.answer([{"id": DIGEST, "tags": [TAG], "created": 1, "config": {"format": "gguf"}}])
        elif match is None:
            await refused(exchange, 404, "not found")
        elif exchange.method == "GET" and match["path"] == "/v1/models":
            data = [{"id": TAG, "object": "model", "created": 1, "owned_by": "docker"}]
            await exchange.answer({"object": "list", "data": data})
        elif exchange.method == "POST" and match["path"] in _OPERATIONS:
            await self._schedule(exchange, match["backend"], match["path"])
        else:
            await refused(exchange, 404, "not found")

    async def _schedule(self, exchange: Exchange, backend: str | None, path: str) -> None:
        model = self._model_of(exchange)
        if backend not in {None, "llama.cpp", "vllm"}:
            await refused(exchange, 404, "backend not found")
        elif not model:
            await refused(exchange, 400, "model is required")
        elif model != NAME:
            await refused(exchange, 404, "model not found")
        elif self.is_stopping:
            await refused(exchange, 503, "service unavailable")
        elif await self._load(exchange):
            await (self.overriding or self.engine)(self._passed_on(exchange, path))

    @staticmethod
    def _model_of(exchange: Exchange) -> str:
        document: Any = exchange.json
        model = document.get("model", "")
        return model if isinstance(model, str) else ""

    async def _load(self, exchange: Exchange) -> bool:
        """Whether the engine is there in the end; no header is sent before."""
        if not self.is_loaded:
            self.is_asked.set()
            await self.may_load.wait()
            if self.load_failure is not None:
                await refused(exchange, 500, f"unable to load runner: {self.load_failure}")
                return False
            self.is_loaded = True
        return True

    @staticmethod
    def _passed_on(exchange: Exchange, path: str) -> Exchange:
        """The same request with the path from `/v1/` on."""
        return replace(exchange, path=path)


async def refused(exchange: Exchange, status: int, text: str) -> None:
    """Go's http.Error."""
    await exchange.answer(f"{text}\n".encode(), status=status, headers=_TEXT)


async def still_loading(exchange: Exchange) -> None:
    """llama.cpp before its model has loaded."""
    body = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    await exchange.answer(body, status=503)


async def engine_gone(exchange: Exchange) -> None:
    """The engine's process ended while it had the request."""
    body = {"type": "error", "code": None, "message": "exit status 1", "param": None, "sequence_number": 1}
    await exchange.answer(body, status=500)


async def bad_gateway(exchange: Exchange) -> None:
    """The engine could not be reached: 502, nothing else."""
    await exchange.open({}, status=502)
    await exchange.end()
