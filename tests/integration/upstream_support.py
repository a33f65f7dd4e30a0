"""An upstream engine in front of a stand-in, and what is read of its answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from headrace_server.domain import EventStream, Operation
from headrace_server.engine.base import EngineSpec
from headrace_server.engine.upstream_engine import UpstreamEngine
from headrace_server.errors import RequestError
from tests.fakes.engine_requests import MODEL, Frame, frames_of, opened
from tests.fakes.upstream_server import FakeUpstream, Handler, serving

HELLO = [{"role": "user", "content": "What is the capital of France?"}]


@asynccontextmanager
async def engine_before(
    handler: Handler, *, upstream_model: str, prefix: str = "", socket_path: Path | None = None
) -> AsyncIterator[tuple[UpstreamEngine, FakeUpstream]]:
    """A started engine before a running server, over TCP or a Unix socket; `prefix` is what its addresses end in."""
    upstream = FakeUpstream(handler, models=handler)
    async with serving(upstream, socket_path=socket_path) as address:
        url = f"{address}:{prefix}" if socket_path and prefix else f"{address}{prefix}"
        engine = UpstreamEngine(EngineSpec(MODEL, "upstream", url=url, arguments={"upstream_model": upstream_model}))
        try:
            await engine.start()
            yield engine, upstream
        finally:
            await engine.close()


async def chat_stream(engine: UpstreamEngine) -> EventStream:
    """A stream of which nothing has been read."""
    return (await opened(engine, Operation.CHAT, messages=HELLO)).events


async def read_to_the_end(events: EventStream) -> tuple[list[Frame], RequestError | None]:
    """All frames of a stream, and the error that ended it."""
    items: list[bytes] = []
    try:
        async for item in events:
            items.append(item)  # noqa: PERF401 - what came before an error is wanted
    except RequestError as error:
        return frames_of(items), error
    return frames_of(items), None


def text_of(frames: list[Frame]) -> str:
    """What a stream of a chat or text completion said."""
    choices = [choice for frame in frames if frame.data != "[DONE]" for choice in frame.data["choices"]]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
