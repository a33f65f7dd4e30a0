"""One request to a model as others see it: what its client is told while it waits and in headers, what the log says.

The boundary around the application finds it in the request's state, and so tells the same of every answer, whether it
came or was refused.
"""

from collections.abc import Mapping

from headrace_server.api.held_comment import held_comment, queue_comment
from headrace_server.domain import EngineRequest, ModelState, Reply
from headrace_server.runtime import Runtime
from headrace_server.serving.passage import Passage


class ModelRequest:
    """See the module."""

    def __init__(self, runtime: Runtime, request: EngineRequest, found: ModelState) -> None:
        """`found`: the state in which the request found its model."""
        self._runtime = runtime
        self._request = request
        self._found = found
        self._passage: Passage | None = None

    async def work(self) -> Reply:
        """Serve it; see `Inference.open` and `Passage.answer`."""
        self._passage = self._runtime.inference.open(self._request)
        return await self._passage.answer()

    def comment(self) -> bytes:
        """What it waits for: its turn, or its model."""
        outlook = self._passage.outlook() if self._passage is not None else None
        if outlook is not None:
            return queue_comment(outlook)
        return held_comment(self._runtime.pool.status(self._request.model))

    def headers(self) -> Mapping[str, str]:
        """Of its answer, as known by now."""
        headers = {"x-headrace-model-state": self._found.value}
        if (milliseconds := self._queue_ms()) is not None:
            headers["x-headrace-queue-ms"] = str(milliseconds)
        return headers

    def log_fields(self) -> Mapping[str, object]:
        """For the access log: nothing of its content, and no key."""
        request = self._request
        fields = {"model": request.model, "tenant": request.caller.tenant, "class": request.service_class.value}
        milliseconds = self._queue_ms()
        return fields if milliseconds is None else {**fields, "queue_ms": milliseconds}

    def _queue_ms(self) -> int | None:
        seconds = self._passage.queue_seconds if self._passage is not None else None
        return None if seconds is None else round(seconds * 1000)
