"""Which requests' deadlines have passed, and when the next one will."""

import heapq
from itertools import count

from headrace_server.scheduling.fair_queue import Entry


class Deadlines:
    """A heap of entries by deadline. Those that are over stay in it until they come up, or are too many."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry]] = []
        self._order = count()
        self._num_over = 0

    def __len__(self) -> int:
        """With those that are over and have not come up."""
        return len(self._heap)

    def watch(self, entry: Entry) -> None:
        """Ends once the entry is over; an entry is watched once however often it comes."""
        deadline = entry.arrival.deadline
        if deadline is not None and not entry.is_watched:
            entry.is_watched = True
            heapq.heappush(self._heap, (deadline, next(self._order), entry))

    def forget(self, entry: Entry) -> None:
        """It is over."""
        self._num_over += entry.is_watched
        if self._num_over > len(self._heap) // 2:
            self._heap = [item for item in self._heap if not item[2].is_over]
            heapq.heapify(self._heap)
            self._num_over = 0

    def passed(self, now: float) -> list[Entry]:
        """Those whose deadline has come, and that are watched no longer."""
        passed = []
        while (when := self.next_time()) is not None and when <= now:
            entry = heapq.heappop(self._heap)[2]
            entry.is_watched = False
            passed.append(entry)
        return passed

    def next_time(self) -> float | None:
        """When to look again."""
        while self._heap and self._heap[0][2].is_over:
            heapq.heappop(self._heap)
            self._num_over -= 1
        return self._heap[0][0] if self._heap else None
