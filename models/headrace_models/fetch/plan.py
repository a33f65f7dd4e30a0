"""What to fetch next: what a reader waits for first, then everything in execution order. Pure and synchronous.

A chunk is waiting, taken, or settled. `next_run` joins chunks that follow each other both in the order and in their
shard, up to RUN_BYTES, into one run, which is one request. A shard whose source ignores ranges is streamed by one
taker at a time, who claims all of it. Not thread-safe: the fetcher calls it under its lock.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from headrace_models.seek_index import SeekIndex

RUN_BYTES = 8 << 20

_SETTLED, _WAITING, _TAKEN = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring chunks `first` to `end` (not included) of a shard; they are its bytes `begin_byte` to `end_byte`."""

    file: int
    first: int
    end: int
    begin_byte: int
    end_byte: int


class FetchPlan:
    """Which chunks are still to be fetched, and which are under way."""

    def __init__(
        self,
        index: SeekIndex,
        missing: Iterable[tuple[int, int]],
        *,
        groups: frozenset[str] | None = None,
        on_demand: bool = False,
    ) -> None:
        """`missing` in execution order. `groups`: only these (and headers); `on_demand`: only headers and demands."""
        self._layouts = index.layouts
        self._states = [bytearray(len(layout)) for layout in index.layouts]
        numbers = None if groups is None else {index.groups.index(name) for name in groups if name in index.groups}
        self._order: list[tuple[int, int]] = []
        self._demands: deque[tuple[int, range]] = deque()
        self._streamed: set[int] = set()
        self._next = 0
        self._num_open = 0
        for file, chunk in missing:
            group = self._layouts[file].group_of(chunk)
            self._states[file][chunk] = _WAITING
            if group is None or (not on_demand and (numbers is None or group in numbers)):
                self._order.append((file, chunk))
        self._in_order = set(self._order)
        self._num_open = len(self._order)

    @property
    def is_done(self) -> bool:
        """Whether nothing of what was asked for, by demands too, is missing; more demands may come."""
        return self._num_open == 0

    @property
    def open_bytes(self) -> int:
        """What is still to come."""
        return sum(self._size(file, chunk) for file, chunk in self._order if self._states[file][chunk] != _SETTLED)

    def want(self, file: int, chunks: range) -> None:
        """A reader waits for these: they go before everything else, later demands after earlier ones. What was left out
        at first belongs to the selection from now on."""
        self._demands.append((file, chunks))
        more = self._left_out([(file, chunks)])
        self._order += sorted(more)
        self._in_order |= more
        self._num_open += len(more)

    def left_out_bytes(self, demands: Iterable[tuple[int, range]]) -> int:
        """By how much `want` for each of these would add to what is to come."""
        return sum(self._size(file, chunk) for file, chunk in self._left_out(demands))

    def next_run(self) -> Run | None:
        """Take the next run; None while nothing is waiting."""
        return self._next_demanded() or self._next_in_order()

    def claim_stream(self, file: int) -> range | None:
        """Take all of a shard that comes as one stream; None: somebody else streams it already."""
        if file in self._streamed:
            return None
        self._streamed.add(file)
        states = self._states[file]
        for chunk, state in enumerate(states):
            if state == _WAITING:
                states[chunk] = _TAKEN
        return range(len(states))

    def release_stream(self, file: int) -> None:
        """The stream has ended; what it did not bring waits again."""
        self._streamed.discard(file)
        self.give_back(file, range(len(self._states[file])))
        self._next = 0  # what others gave back meanwhile was passed over

    def is_needed(self, file: int, chunk: int) -> bool:
        """Whether the chunk has not arrived yet."""
        return self._states[file][chunk] != _SETTLED

    def settle(self, file: int, chunk: int) -> None:
        """The chunk is in the store."""
        if self._states[file][chunk] != _SETTLED:
            self._states[file][chunk] = _SETTLED
            self._num_open -= (file, chunk) in self._in_order

    def give_back(self, file: int, chunks: range) -> None:
        """What was taken and did not arrive waits again, at its place in the order."""
        states = self._states[file]
        for chunk in chunks:
            if states[chunk] == _TAKEN:
                states[chunk] = _WAITING
                self._next = 0

    def forget(self, file: int) -> None:
        """A whole shard proved wrong and is fetched again."""
        states = self._states[file]
        for chunk, state in enumerate(states):
            if state == _SETTLED:
                states[chunk] = _WAITING
                if (file, chunk) not in self._in_order:
                    self._in_order.add((file, chunk))
                    self._order.append((file, chunk))
                self._num_open += 1
        self._next = 0

    def _next_demanded(self) -> Run | None:
        while self._demands:
            file, chunks = self._demands[0]
            first = next((chunk for chunk in chunks if self._is_free(file, chunk)), None)
            if first is not None:
                return self._take(file, range(first, chunks.stop))
            self._demands.popleft()
        return None

    def _next_in_order(self) -> Run | None:
        while self._next < len(self._order):
            file, chunk = self._order[self._next]
            if self._is_free(file, chunk):
                return self._take(file, self._neighbours(self._next))
            self._next += 1
        return None

    def _neighbours(self, position: int) -> Iterator[int]:
        """Chunks from this place in the order on, as long as they follow each other in the same shard."""
        file, chunk = self._order[position]
        while position < len(self._order) and self._order[position] == (file, chunk):
            yield chunk
            position, chunk = position + 1, chunk + 1

    def _take(self, file: int, chunks: Iterable[int]) -> Run:
        """Take the first of `chunks`, which is free, and those after it as far as they are free and fit one run."""
        layout, states = self._layouts[file], self._states[file]
        taken: list[int] = []
        for chunk in chunks:
            begin_byte = layout.range_of(taken[0] if taken else chunk)[0]
            end_byte = layout.range_of(chunk)[1]
            if not self._is_free(file, chunk) or (taken and end_byte - begin_byte > RUN_BYTES):
                break
            states[chunk] = _TAKEN
            taken.append(chunk)
        return Run(file, taken[0], taken[-1] + 1, layout.range_of(taken[0])[0], layout.range_of(taken[-1])[1])

    def _left_out(self, demands: Iterable[tuple[int, range]]) -> set[tuple[int, int]]:
        asked = ((file, chunk) for file, chunks in demands for chunk in chunks)
        return {place for place in asked if place not in self._in_order and self.is_needed(*place)}

    def _is_free(self, file: int, chunk: int) -> bool:
        return self._states[file][chunk] == _WAITING and file not in self._streamed

    def _size(self, file: int, chunk: int) -> int:
        begin, end = self._layouts[file].range_of(chunk)
        return end - begin
