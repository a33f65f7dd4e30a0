"""What comes before many requests of a class: `FairQueue.ahead_of`, for thousands at once.

What a tenant may have below a level rises evenly from its counter to where all that it has is below. So the sum over
all tenants at a level is that of those who rise there, and of those who have risen: with both ends of every rise sorted
and summed up once, each level is looked up instead of asking every tenant.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from headrace_server.scheduling.costs import Work
from headrace_server.scheduling.fair_queue import ClassQueue, Flow, rise, share_below


@dataclass(slots=True)
class _Sums:
    """Of some rises: what rises for each unit of level, and that by the level from which it does."""

    slope: Work
    offset: Work

    def after(self, waiting: Work, begin: float, length: float) -> "_Sums":
        """With one more."""
        slope, offset = Work(), Work()
        slope.add(self.slope)
        slope.add(waiting, 1 / length)
        offset.add(self.offset)
        offset.add(waiting, begin / length)
        return _Sums(slope, offset)


class Lineup:
    """See the module. `urgent`: the classes whose requests all come before. It holds as long as nothing changes."""

    def __init__(self, queue: ClassQueue, urgent: Iterable[ClassQueue]) -> None:
        self._queue = queue
        self._before = Work()
        for other in urgent:
            self._before.add(other.waiting)
        rises = [(flow.virtual_tokens, rise(flow), flow.waiting) for flow in queue.flows.values()]
        self._begins, self._rising = _summed((begin, begin, length, waiting) for begin, length, waiting in rises)
        self._ends, self._risen = _summed((begin + length, begin, length, waiting) for begin, length, waiting in rises)
        self._whole = [Work()]
        for _, waiting in sorted(
            ((begin + length, waiting) for begin, length, waiting in rises), key=lambda end: end[0]
        ):
            total = Work()
            total.add(self._whole[-1])
            total.add(waiting)
            self._whole.append(total)

    def ahead_of(self, flow: Flow, own: Work) -> Work:
        """See `FairQueue.ahead_of`; of a flow in which something waits."""
        level = flow.virtual_tokens + own.cost / flow.tenant.terms.weight
        rising = self._rising[bisect_right(self._begins, level)]
        num_ended = bisect_right(self._ends, level)
        risen = self._risen[num_ended]
        ahead = Work()
        ahead.add(own)
        ahead.add(self._before)
        ahead.add(rising.slope, level)
        ahead.add(risen.slope, -level)
        ahead.add(rising.offset, -1)
        ahead.add(risen.offset)
        ahead.add(self._whole[num_ended])
        ahead.add(flow.waiting, -share_below(flow, level))
        return ahead


def _summed(rises: Iterable[tuple[float, float, float, Work]]) -> tuple[list[float], list[_Sums]]:
    """The keys of the rises, sorted, and the sums of the first 0, 1, 2, ... of them."""
    in_order = sorted(rises, key=lambda rise: rise[0])
    sums = [_Sums(Work(), Work())]
    for _, begin, length, waiting in in_order:
        sums.append(sums[-1].after(waiting, begin, length))
    return [key for key, *_ in in_order], sums
