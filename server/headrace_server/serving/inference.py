"""One request from the API to an engine and back: resolve the model, check what it allows, lease, admit, answer.

The engine takes the request's seat once it has tokenised it. Lease and seat travel with the reply: a unary reply gives
them back before it is returned, a stream when it ends, however it ends.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from headrace_server.domain import EngineRequest, EventStream, ModelId, Reply, StreamReply
from headrace_server.engine.pool import EnginePool, Lease
from headrace_server.serving.admission import Admission, RequestSeat
from headrace_server.serving.answer import written
from headrace_server.serving.policy import ModelPolicy


class Inference:
    """Serves requests on the engines of a pool, in the order that `admission` decides."""

    def __init__(self, pool: EnginePool, policies: Mapping[ModelId, ModelPolicy], admission: Admission) -> None:
        self._pool = pool
        self._policies = policies
        self._admission = admission

    async def submit(self, request: EngineRequest) -> Reply:
        """Serve one request; `request.model` is the name that the client used.

        A request for a stream is answered with one. Cancelling the call, or closing a reply's stream, stops the work.

        Raises:
            RequestError: see `EnginePool.lease`, `ModelPolicy.check`, `Admission.admit` and `Engine.submit`.
        """
        entry = self._pool.entry(request.model)
        self._policies.get(entry.id, ModelPolicy()).check(request.payload)
        lease = self._pool.lease(request.model, request.operation)
        resolved = replace(request, model=entry.id, payload={**request.payload, "model": entry.id})
        holding = _Holding(lease, RequestSeat(self._admission, resolved))
        try:
            reply = await written(resolved, await lease.engine.submit(resolved, holding.seat))
        except BaseException:
            holding.release()
            raise
        if isinstance(reply, StreamReply):
            return StreamReply(HeldStream(reply.events, holding))
        holding.release()
        return reply


class _Holding:
    """What a request holds while it is served: its lease and its seat."""

    def __init__(self, lease: Lease, seat: RequestSeat) -> None:
        self._lease = lease
        self.seat = seat

    def release(self) -> None:
        """Give both back; a second call does nothing."""
        self.seat.release()
        self._lease.release()


class HeldStream:
    """A stream that gives back what its request holds when it ends, fails or is closed. A class, not a generator: a
    generator that was never started does not run its `finally`."""

    def __init__(self, events: EventStream, holding: _Holding) -> None:
        self._events = events
        self._holding = holding

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._events.__anext__()
        except BaseException:
            self._holding.release()
            raise

    async def aclose(self) -> None:
        """Stop the generation and give everything back."""
        try:
            await self._events.aclose()
        finally:
            self._holding.release()
