"""One request from the API to an engine and back: find the model, check what it allows, door, lease, turn, answer.

The engine takes the request's seat once it has tokenised it. Place and lease travel with the reply: a unary reply gives
them back before it is returned, a stream when it ends, however it ends.
"""

from collections.abc import Mapping
from dataclasses import replace

from headrace_server.domain import EngineRequest, ModelId, Reply
from headrace_server.engine.pool import EnginePool
from headrace_server.serving.admission import Admission
from headrace_server.serving.drain import Drain
from headrace_server.serving.passage import Passage
from headrace_server.serving.policy import ModelPolicy


class Inference:
    """Serves requests on the engines of a pool, in the order that `admission` decides, until `drain` begins."""

    def __init__(
        self, pool: EnginePool, policies: Mapping[ModelId, ModelPolicy], admission: Admission, drain: Drain
    ) -> None:
        self._pool = pool
        self._policies = policies
        self._admission = admission
        self._drain = drain

    async def submit(self, request: EngineRequest) -> Reply:
        """Serve one request; see `open`."""
        return await self.open(request).answer()

    def open(self, request: EngineRequest) -> Passage:
        """Let one request in at the door; the passage's `answer` serves it. `request.model` is the name that the client
        used.

        A request for a stream is answered with one. Cancelling the answer, or closing a reply's stream, stops the work.

        Raises:
            Draining: the server takes no more requests.
            RequestError: see `EnginePool.entry`, `ModelPolicy.check` and `Admission.enter`.
        """
        entry = self._pool.entry(request.model)
        self._policies.get(entry.id, ModelPolicy()).check(request.payload)
        resolved = replace(request, model=entry.id, payload={**request.payload, "model": entry.id})
        return Passage(resolved, self._pool, self._admission, self._drain)
