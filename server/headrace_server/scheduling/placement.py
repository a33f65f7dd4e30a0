"""Who gets memory: models are loaded in the order in which they were wanted, the least recently used one makes room.

The rules, each kept by one small method below:

- A model starts when its estimate fits into the memory that nobody has. One engine starts at a time, because two slow
  each other down; one that only waits for its weights does not. A model that takes no memory starts at once.
- Who was there first comes first. A later one may overtake only with memory that the earlier ones will not need: it
  never makes them wait longer (the backfilling of batch schedulers: Lifka, "The ANL/IBM SP Scheduling System", 1995).
- Room is made by as few as will do: first models that nobody uses, the longest unused in front; then models in use
  that have had their turn of `turn_seconds`, the longest serving in front. Those get no new requests, finish what they
  have and leave. Nobody goes in vain: not before enough can go, and not while another engine starts.
- Pinned models stay. What does not fit beside them will never fit, and is told so.
- Models loaded in advance take what is free when nobody waits for it. They make no room and wait for none.
- A model that has been idle for as long as its keep-alive allows goes, whoever wants its memory.

Memory is counted as it is reported: estimates while engines start, measurements afterwards. If these turn out larger
than the budget, nothing starts until there is room again, and nobody goes for that reason alone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headrace_server.domain import ModelId
from headrace_server.residency import NoRoom, Phase, Placement, Resident, Wanted


class LeastRecentlyUsed:
    """The `residency.PlacementPolicy` of the module's docstring."""

    def __init__(self, budget_bytes: int, *, turn_seconds: float) -> None:
        """`budget_bytes`: for all models together. `turn_seconds`: how long a model in use keeps memory that others
        wait for."""
        self._budget_bytes = budget_bytes
        self._turn_seconds = turn_seconds

    def plan(self, residents: Sequence[Resident], wanted: Sequence[Wanted], now: float) -> Placement:
        """See `residency.PlacementPolicy`. A plan that has been carried out is not followed by another one until
        something happens or it is time to look again."""
        books = _Books(self._budget_bytes, residents, turn_seconds=self._turn_seconds, now=now)
        books.end_keep_alives(residents)
        for wish in sorted(wanted, key=_rank):
            if wish.memory_bytes == 0:
                books.start(wish)
            elif not wish.may_evict:
                books.place_in_advance(wish)
            elif wish.memory_bytes > books.placeable_bytes:
                books.turn_down(wish)
            else:
                books.place(wish)
        return books.placement()


def _rank(wish: Wanted) -> tuple[bool, float, ModelId]:
    return not wish.may_evict, wish.since, wish.model


@dataclass(frozen=True, slots=True)
class _Victim:
    """A resident that serves and may have to go. `from_time`: when it may be asked to."""

    resident: Resident
    from_time: float


class _Books:
    """A plan in the making. Wishes are entered one after the other, and each leaves less to those behind it.

    Attributes:
        free_bytes: memory that nobody has; negative where measurements exceed estimates.
        unclaimed_bytes: what is free and what will be once those who leave have left, less the claims on it.
        promised_bytes: what is waited for without a claim, because those who have it may not be asked to go yet.
        spare_bytes: the most that others may claim without making anybody wait longer who was promised memory.
        placeable_bytes: the largest model that fits beside those that have to stay.
        victims: who may have to go and has not been asked to, whom to ask first in front.
        may_start: no engine starts, but those that wait for their weights.
    """

    def __init__(self, budget_bytes: int, residents: Sequence[Resident], *, turn_seconds: float, now: float) -> None:
        staying = [resident for resident in residents if resident.phase is not Phase.LEAVING]
        self._now = now
        self._budget_bytes = budget_bytes
        self._pinned = [resident for resident in staying if resident.is_pinned]
        self.free_bytes = budget_bytes - _total(residents)
        self.unclaimed_bytes = budget_bytes - _total(staying)
        self.promised_bytes = 0
        self.spare_bytes: float = math.inf
        self.placeable_bytes = budget_bytes - _total(self._pinned)
        self.victims = _victims(staying, turn_seconds=turn_seconds, now=now)
        self.may_start = not any(map(_is_busy_starting, residents))
        self._start: list[ModelId] = []
        self._leaving: list[Resident] = []
        self._no_room: list[NoRoom] = []
        self._look_again: list[float] = []

    def placement(self) -> Placement:
        """What has been decided."""
        return Placement(
            start=tuple(self._start),
            evict=tuple(resident.model for resident in self._leaving if resident.num_leases == 0),
            drain=tuple(resident.model for resident in self._leaving if resident.num_leases > 0),
            no_room=tuple(self._no_room),
            look_again_at=min(self._look_again, default=None),
        )

    # What is decided.

    def end_keep_alives(self, residents: Iterable[Resident]) -> None:
        """Who has been idle for long enough goes; who has not is looked at again when it will have been."""
        for resident in sorted(residents, key=lambda resident: resident.model):
            if resident.keep_alive_seconds is None or resident.is_pinned or not _is_idle(resident):
                continue
            end = resident.idle_since + resident.keep_alive_seconds
            if self._now >= end:
                self._send_away([resident])
            else:
                self._look_again.append(end)

    def place(self, wish: Wanted) -> None:
        """Give a wish what it needs, or what it can count on for now."""
        if wish.memory_bytes <= self.spare_bytes and self._make_room(wish.memory_bytes - self.unclaimed_bytes):
            self.spare_bytes -= wish.memory_bytes
            self._claim(wish)
        else:
            self._promise(wish)

    def place_in_advance(self, wish: Wanted) -> None:
        """Give a wish memory that nobody else waits for, or tell it that there is not enough of that."""
        available_bytes = self.unclaimed_bytes - self.promised_bytes
        if wish.memory_bytes <= available_bytes:
            self._claim(wish)
        else:
            self._no_room.append(NoRoom(wish.model, wish.memory_bytes, max(0, available_bytes)))

    def turn_down(self, wish: Wanted) -> None:
        """Say of a wish that cannot come true what stands in its way."""
        largest_first = sorted(self._pinned, key=lambda resident: (-resident.memory_bytes, resident.model))
        blocked_by = _fewest(largest_first, wish.memory_bytes - self.placeable_bytes)
        available_bytes = max(0, self.placeable_bytes) if blocked_by else self._budget_bytes
        models = tuple(resident.model for resident in blocked_by)
        self._no_room.append(NoRoom(wish.model, wish.memory_bytes, available_bytes, models))

    def start(self, wish: Wanted) -> None:
        """Start a model. Its memory is free, or it needs none."""
        self._start.append(wish.model)
        self.may_start = self.may_start and wish.memory_bytes == 0

    # How memory is found.

    def _make_room(self, missing_bytes: int) -> bool:
        """Whether so much more comes free, after asking those to go who have to; if not, nobody was asked."""
        if missing_bytes <= 0:
            return True
        if not self.may_start:
            return False
        ready = [victim.resident for victim in self.victims if victim.from_time <= self._now]
        chosen = _fewest(ready, missing_bytes)
        self._send_away(chosen)
        return bool(chosen)

    def _send_away(self, residents: Sequence[Resident]) -> None:
        self._leaving += residents
        self.victims = [victim for victim in self.victims if victim.resident not in residents]
        self.unclaimed_bytes += _total(residents)

    def _claim(self, wish: Wanted) -> None:
        self.unclaimed_bytes -= wish.memory_bytes
        if self.may_start and wish.memory_bytes <= self.free_bytes:
            self.start(wish)

    def _promise(self, wish: Wanted) -> None:
        """Find out when everything that was promised can be had, and how much is left over then."""
        self.promised_bytes += wish.memory_bytes
        times = sorted({self._now, *(max(self._now, victim.from_time) for victim in self.victims)})
        when = next((time for time in times if self._obtainable_bytes(time) >= self.promised_bytes), math.inf)
        self.spare_bytes = min(self.spare_bytes, self._obtainable_bytes(when) - self.promised_bytes)
        if self._now < when < math.inf:
            self._look_again.append(when)

    def _obtainable_bytes(self, time: float) -> int:
        return self.unclaimed_bytes + _total(v.resident for v in self.victims if v.from_time <= time)


def _victims(residents: Iterable[Resident], *, turn_seconds: float, now: float) -> list[_Victim]:
    """Those that are not pinned: idle ones, longest unused first, then those in use, longest serving first."""
    movable = sorted((resident for resident in residents if not resident.is_pinned), key=lambda r: r.model)
    idle = [_Victim(resident, now) for resident in movable if _is_idle(resident)]
    in_use = [
        _Victim(resident, resident.serving_since + turn_seconds)
        for resident in movable
        if resident.phase is Phase.SERVING and resident.num_leases > 0
    ]
    idle.sort(key=lambda victim: victim.resident.idle_since)
    in_use.sort(key=lambda victim: victim.from_time)
    return idle + in_use


def _is_busy_starting(resident: Resident) -> bool:
    return resident.phase is Phase.STARTING and resident.memory_bytes > 0 and not resident.is_waiting


def _is_idle(resident: Resident) -> bool:
    return resident.phase is Phase.SERVING and resident.num_leases == 0


def _fewest(residents: Sequence[Resident], needed_bytes: int) -> list[Resident]:
    """Residents with so much memory together, none of them superfluous, those in front if possible; none if all are
    too few. Of [1, 2, 4] bytes, 3 are found in [1, 2], 4 in [4] and 5 in [1, 4]."""
    excess_bytes = _total(residents) - needed_bytes
    if excess_bytes < 0:
        return []
    chosen = list(residents)
    for resident in reversed(residents):
        if resident.memory_bytes <= excess_bytes:
            chosen.remove(resident)
            excess_bytes -= resident.memory_bytes
    return chosen


def _total(residents: Iterable[Resident]) -> int:
    return sum(resident.memory_bytes for resident in residents)
