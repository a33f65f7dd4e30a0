"""Generations whose every delta the test sends.

`FakeDeltas` is an async generator inside, so it is exactly as strict as one: closing it, or reading it a second time,
while somebody reads is an error, and one that was never read does nothing when it is closed.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence

from headrace_server.generation import Delta, DeltaStream, Generation


class FakeDeltas:
    """A `DeltaStream` fed by the test.

    Attributes:
        asked: set while somebody waits for a step.
        closed: set once the stream is over, by its end, its failure, a cancelled read or `aclose`.
        was_aborted: it was over before the test ended it.
        num_asked: steps that were asked for.
    """

    def __init__(self, *steps: Sequence[Delta], steps_to_close: int = 3) -> None:
        """`steps_to_close`: turns of the loop that stopping takes, as in an engine that has to be told."""
        self.asked = asyncio.Event()
        self.closed = asyncio.Event()
        self.was_aborted = False
        self.num_asked = 0
        self._items: asyncio.Queue[Sequence[Delta] | Exception | None] = asyncio.Queue()
        self._steps_to_close = steps_to_close
        self._is_ended = False
        self._steps = self._generate()
        for step in steps:
            self.send(*step)

    def send(self, *deltas: Delta) -> None:
        """The next step."""
        self._items.put_nowait(deltas)

    def fail(self, error: Exception) -> None:
        """The generation breaks here."""
        self._items.put_nowait(error)

    def end(self) -> None:
        """The generation ends here."""
        self._items.put_nowait(None)

    async def _generate(self) -> AsyncGenerator[Sequence[Delta], None]:
        try:
            while (step := await self._next()) is not None:
                yield step
        finally:
            for _ in range(self._steps_to_close):
                await asyncio.sleep(0)
            self._over()

    async def _next(self) -> Sequence[Delta] | None:
        self.asked.set()
        item = await self._items.get()
        self.asked.clear()
        self._is_ended = item is None or isinstance(item, Exception)
        if isinstance(item, Exception):
            raise item
        return item

    def _over(self) -> None:
        if not self.closed.is_set():
            self.was_aborted = not self._is_ended
            self.closed.set()

    def __aiter__(self) -> AsyncIterator[Sequence[Delta]]:
        return self

    async def __anext__(self) -> Sequence[Delta]:
        self.num_asked += 1
        return await self._steps.__anext__()

    async def aclose(self) -> None:
        """Stop; an error while somebody reads."""
        await self._steps.aclose()
        self._over()


def said(*steps: Iterable[Delta]) -> FakeDeltas:
    """Deltas of which all are there, with their end."""
    deltas = FakeDeltas(*map(tuple, steps))
    deltas.end()
    return deltas


def generation(
    deltas: DeltaStream,
    *,
    num_choices: int = 1,
    prompt_lengths: tuple[int, ...] = (3,),
    role: str = "assistant",
    fingerprint: str | None = None,
) -> Generation:
    """What an engine answers."""
    return Generation(deltas, prompt_lengths, num_choices, role, fingerprint)
