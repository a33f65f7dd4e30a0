"""An engine that forwards to another OpenAI-compatible server, over TCP or a Unix socket.

The payload goes out as it came, but for the model's name and the wish for a stream's usage, which is heard here and
passed on only to clients that asked. Streams are passed on frame by frame, unary replies after they were seen to be
JSON. One HTTP client lives as long as the engine; nothing is retried, because a request that
failed half way may have been charged. Whether the server can be reached is learnt from the requests themselves; once
one could not connect, `check` asks again, at most every second.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import msgspec

from headrace_server.domain import (
    EngineRequest,
    EngineStats,
    Operation,
    Reply,
    Seat,
    StreamReply,
    UnaryReply,
)
from headrace_server.engine.base import EngineInfo, EngineSpec
from headrace_server.engine.upstream_client import body_of, is_compressed, open_client
from headrace_server.engine.upstream_errors import from_status
from headrace_server.engine.upstream_options import address_of, options_of
from headrace_server.engine.upstream_payload import asking_for_usage, demand_of, wants_usage
from headrace_server.engine.upstream_stream import UpstreamStream
from headrace_server.engine.upstream_usage import UpstreamAccount
from headrace_server.errors import Contended, EngineDown, EngineFault, RequestError

logger = logging.getLogger(__name__)

_MAX_ERROR_BYTES = 64 * 1024
_MODELS_PATH = "/v1/models"
_MODELS_TIMEOUT_SECONDS = 10.0
_PROBE_INTERVAL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Model:
    """An entry of `/v1/models`."""

    id: str
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class _ModelList:
    data: tuple[_Model, ...] = ()


@dataclass(slots=True)
class _Counters:
    num_running: int = 0
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0

    def leave(self) -> None:
        self.num_running -= 1

    def account(self, request: EngineRequest, seat: Seat) -> UpstreamAccount:
        """Counts a request's tokens for its seat and for these counters."""
        return UpstreamAccount(
            seat,
            request.operation,
            on_prompt=self._began,
            on_output=self._generated,
            hides_usage=not wants_usage(request.payload),
        )

    def _began(self, num_tokens: int) -> None:
        self.num_prompt_tokens += num_tokens

    def _generated(self, num_tokens: int) -> None:
        self.num_generation_tokens += num_tokens


class UpstreamEngine:
    """See `engine.base.Engine` for the contract and `UpstreamOptions` for the arguments."""

    def __init__(self, spec: EngineSpec, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = spec.model
        self._address = address_of(spec)
        self._options = options_of(spec)
        self._clock = clock
        self._client: httpx.AsyncClient | None = None
        self._counters = _Counters()
        self._is_reachable = True
        self._probed_at = -math.inf

    async def start(self) -> EngineInfo:
        """See `Engine.start`. The server must answer when asked for its models; it may say that it lists none."""
        # In a thread: reading the certificate store takes tens of milliseconds.
        self._client = await asyncio.to_thread(open_client, self._address, self._options)
        try:
            models = await self._models()
        except RequestError as error:
            raise EngineFault(error.message) from error
        return EngineInfo(frozenset(Operation), self._max_model_len(models))

    async def _models(self) -> tuple[_Model, ...]:
        client = self._require_client()
        timeout = httpx.Timeout(_MODELS_TIMEOUT_SECONDS, connect=self._options.connect_timeout_seconds)
        response = await self._send(client.build_request("GET", _MODELS_PATH, timeout=timeout))
        body = await body_of(response)
        if response.status_code == httpx.codes.NOT_FOUND:
            return ()
        if not response.is_success:
            raise from_status(response.status_code, response.headers, body[:_MAX_ERROR_BYTES])
        try:
            return msgspec.json.decode(body, type=_ModelList).data
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise EngineFault("the upstream server's list of models is not understood") from None

    def _max_model_len(self, models: tuple[_Model, ...]) -> int | None:
        wanted = self._options.upstream_model or self._model
        for model in models:
            if model.id == wanted:
                return model.max_model_len
        if models:
            logger.warning("upstream_model_not_listed", extra={"model": self._model, "upstream_model": wanted})
        return None

    async def submit(self, request: EngineRequest, seat: Seat) -> Reply:
        """See `Engine.submit`. A stream exists once the upstream has sent its headers. Nothing is tokenised here."""
        outgoing = self._outgoing(request)
        await seat.take(demand_of(request.payload))
        account = self._counters.account(request, seat)
        self._counters.num_running += 1
        try:
            response = await self._send(outgoing)
            if request.stream and response.is_success:
                return await self._stream(response, request.operation, account)
            reply = await self._unary(response, account)
        except BaseException:
            self._counters.leave()
            raise
        self._counters.leave()
        return reply

    def _outgoing(self, request: EngineRequest) -> httpx.Request:
        payload = asking_for_usage(request)
        if self._options.upstream_model is not None:
            payload["model"] = self._options.upstream_model
        headers = {
            "accept": "text/event-stream" if request.stream else "application/json",
            "content-type": "application/json",
            "x-request-id": request.request_id,
        }
        content = msgspec.json.encode(payload)
        return self._require_client().build_request("POST", request.operation.value, content=content, headers=headers)

    async def _send(self, outgoing: httpx.Request) -> httpx.Response:
        """Send a request and wait for the headers of the answer, which must be closed.

        Raises:
            EngineDown: the server cannot be reached, or hung up.
            Contended: all connections are in use.
        """
        try:
            response = await self._require_client().send(outgoing, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            self._is_reachable = False
            raise _unreachable() from error
        except httpx.PoolTimeout as error:
            raise Contended("all connections to the upstream server are in use", retry_after_seconds=1) from error
        except httpx.HTTPError as error:
            raise EngineDown("the upstream server did not answer") from error
        self._is_reachable = True
        return response

    async def _stream(self, response: httpx.Response, operation: Operation, account: UpstreamAccount) -> StreamReply:
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream") or is_compressed(response):
            await response.aclose()
            raise EngineFault("the upstream server did not answer with a stream")
        return StreamReply(UpstreamStream(response, operation, account, self._counters.leave))

    async def _unary(self, response: httpx.Response, account: UpstreamAccount) -> UnaryReply:
        if not response.is_success:
            body = await body_of(response, max_bytes=_MAX_ERROR_BYTES)
            raise self._refusal(response, body)
        body = await body_of(response)
        if is_compressed(response):
            raise EngineFault("the upstream server compressed its answer unasked")
        reply = UnaryReply(self._checked(body))
        account.document(body)
        return reply

    def _refusal(self, response: httpx.Response, body: bytes) -> RequestError:
        error = from_status(response.status_code, response.headers, body)
        if isinstance(error, EngineFault):
            logger.warning("upstream_failed", extra={"model": self._model, "status": response.status_code})
        return error

    def _checked(self, body: bytes) -> bytes:
        """The reply under our name of the model.

        Raises:
            EngineFault: it is no JSON object.
        """
        try:
            body.decode()  # msgspec checks no strings in what it leaves raw
            document = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise EngineFault("the upstream server's answer is not understood") from None
        if self._options.upstream_model is None or "model" not in document:
            return body
        document["model"] = msgspec.Raw(msgspec.json.encode(self._model))
        return msgspec.json.encode(document)

    def stats(self) -> EngineStats:
        """See `Engine.stats`. Tokens are those that the server tells of; what waits over there is not known."""
        return EngineStats(
            num_requests_running=self._counters.num_running,
            prompt_tokens_total=self._counters.num_prompt_tokens,
            generation_tokens_total=self._counters.num_generation_tokens,
        )

    async def check(self) -> None:
        """See `Engine.check`. Costs a round trip only while the server could not be reached."""
        self._require_client()
        now = self._clock()
        if not self._is_reachable and now - self._probed_at >= _PROBE_INTERVAL_SECONDS:
            self._probed_at = now
            await self._probe()
        if not self._is_reachable:
            raise _unreachable()

    async def _probe(self) -> None:
        """Any answer will do."""
        try:
            await self._models()
        except RequestError:
            logger.debug("upstream_probe_failed", extra={"model": self._model})

    async def heartbeat(self) -> None:
        """See `Engine.heartbeat`. Whether the other server hangs is its own to find out: slow is not down."""
        await self.check()

    async def close(self) -> None:
        """See `Engine.close`; streams that are still read end in `EngineDown`."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _require_client(self) -> httpx.AsyncClient:
        if self._client is None:
            raise EngineDown("the engine of this model is not running")
        return self._client


def _unreachable() -> EngineDown:
    return EngineDown("the upstream server cannot be reached")
