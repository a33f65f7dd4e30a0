"""One request: read a run's bytes from the source, cut them into chunks, hand each to the store as it is complete.

A chunk is hashed, written and marked while the next one is still on its way, so that a kill loses at most one chunk
per connection. Where the source ignores ranges the answer is the whole shard; then everything in it that is missing
is kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from headrace_models.chunk_layout import UNIT_BYTES, ChunkLayout
from headrace_models.errors import SourceUnavailable
from headrace_models.sources.base import Body

READ_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class ArrivedChunk:
    """A whole chunk in memory; `data` is valid until the next one is asked for."""

    number: int
    data: memoryview


def arriving(
    body: Body,
    layout: ChunkLayout,
    *,
    is_wanted: Callable[[int], bool],
    on_bytes: Callable[[int], None],
) -> Iterator[ArrivedChunk]:
    """The wanted chunks in `body`, which begins where a chunk begins; in the order of their bytes.

    Reads no further than the last chunk that is wanted at the beginning. `on_bytes` is told of all bytes as they come,
    the unwanted too, and may wait. Raises what `Body.read` raises, and SourceUnavailable where the body ends early.
    """
    buffer = memoryview(bytearray(UNIT_BYTES))
    chunks = layout.inside(body.begin, body.end)
    last = next((chunk for chunk in reversed(chunks) if is_wanted(chunk)), None)
    for chunk in chunks if last is not None else ():
        begin, end = layout.range_of(chunk)
        into = buffer[: end - begin]
        _read(body, into, on_bytes)
        if is_wanted(chunk):
            yield ArrivedChunk(chunk, into)
        if chunk == last:
            return


def _read(body: Body, into: memoryview, on_bytes: Callable[[int], None]) -> None:
    filled = 0
    while filled < len(into):
        data = body.read(min(READ_BYTES, len(into) - filled))
        if not data:
            raise SourceUnavailable(f"the answer ended {len(into) - filled} bytes early")
        into[filled : filled + len(data)] = data
        filled += len(data)
        on_bytes(len(data))
