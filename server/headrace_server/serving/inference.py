"""One request from the API to an engine and back: resolve the model, check what it allows, lease, submit.

The lease travels with the reply: a unary reply releases it before it is returned, a stream when it ends, however it
ends. This is the seat where admission will decide.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from headrace_server.domain import EngineRequest, EventStream, ModelId, Reply, StreamReply
from headrace_server.engine.pool import EnginePool, Lease
from headrace_server.serving.policy import ModelPolicy


class Inference:
    """Serves requests on the engines of a pool."""

    def __init__(self, pool: EnginePool, policies: Mapping[ModelId, ModelPolicy]) -> None:
        self._pool = pool
        self._policies = policies

    async def submit(self, request: EngineRequest) -> Reply:
        """Serve one request; `request.model` is the name that the client used.

        Cancelling the call, or closing a reply's stream, stops the work.

        Raises:
            RequestError: see `EnginePool.lease`, `ModelPolicy.check` and `Engine.submit`.
        """
        entry = self._pool.entry(request.model)
        self._policies.get(entry.id, ModelPolicy()).check(request.payload)
        lease = self._pool.lease(request.model, request.operation)
        resolved = replace(request, model=entry.id, payload={**request.payload, "model": entry.id})
        try:
            reply = await lease.engine.submit(resolved)
        except BaseException:
            lease.release()
            raise
        if isinstance(reply, StreamReply):
            return StreamReply(LeasedStream(reply.events, lease))
        lease.release()
        return reply


class LeasedStream:
    """A stream that gives its lease back when it ends, fails or is closed. A class, not a generator: a generator
    that was never started does not run its `finally`."""

    def __init__(self, events: EventStream, lease: Lease) -> None:
        self._events = events
        self._lease = lease

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._events.__anext__()
        except BaseException:
            self._lease.release()
            raise

    async def aclose(self) -> None:
        """Stop the generation and give the lease back."""
        try:
            await self._events.aclose()
        finally:
            self._lease.release()
