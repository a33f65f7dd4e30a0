"""The order in which requests are let in: urgent classes first, inside a class the tenant that has had least, inside a
tenant first come, first served.

What a tenant has had is its virtual token counter (VTC: Sheng et al., "Fairness in Serving Large Language Models",
arXiv 2401.00588): the cost of its work, divided by its weight. A tenant has one counter in each class, and work is
charged to the counter of its class and of all that give way to it: so tenants of one class share what more urgent
classes leave them, and who has had much there has had it here too. A tenant of which nothing waits in a class and that
comes back is lifted to the least counter of those that wait, or, if none do, to that of the last one that did: idle
time is no credit.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from headrace_server.domain import Demand, ServiceClass, Tenant, TenantId
from headrace_server.queueing import Arrival, Stage, TicketId
from headrace_server.scheduling.costs import Correction, Habits, TokenWeights, Work
from headrace_server.scheduling.lately import Lately
from headrace_server.scheduling.retry_line import RetryLine

_ORDER = attrgetter("order")


@dataclass(slots=True, eq=False)
class Entry:
    """One request, from the door to its end.

    Attributes:
        order: of arrival; negative for one that has been in the engine and comes again.
        since: when its stage began.
        num_prompt_tokens: as tokenised, or as expected where the engine does not tell.
        prompt_cost: what was charged for the part of the prompt that has not been told of yet.
        num_untold_tokens: that part.
        num_prefill_tokens: what it takes of the prompt budget.
        num_slots: what it takes of the slots.
        num_favoured_slots: the like, if it exceeds the measured limit by a claim to the reserve.
        token_price: of an output token, divided by the tenant's weight.
        joined_at, expected_wait_seconds: when it joined the queue last, and what it was to expect there.
        num_favoured_tokens: of its prompt, if it came in by a claim to the reserve.
        is_favoured: the engine serves it before others of its class.
        is_leaving: it has been named for preemption.
        is_cut: its deadline has ended it.
        is_watched: its deadline is.
    """

    ticket: TicketId
    arrival: Arrival
    flow: "Flow"
    order: int
    since: float
    stage: Stage = Stage.AT_THE_DOOR
    demand: Demand | None = None
    work: Work = field(default_factory=Work)
    num_prompt_tokens: int = 0
    prompt_cost: float = 0.0
    num_untold_tokens: int = 0
    num_prefill_tokens: int = 0
    num_slots: int = 0
    num_favoured_slots: int = 0
    token_price: float = 0.0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    joined_at: float = 0.0
    expected_wait_seconds: float | None = None
    num_favoured_tokens: int = 0
    has_begun: bool = False
    is_favoured: bool = False
    is_leaving: bool = False
    is_cut: bool = False
    is_watched: bool = False
    is_over: bool = False

    @property
    def tenant(self) -> "TenantBooks":
        """Whose it is."""
        return self.flow.tenant


class Flow:
    """The requests of one tenant in one class.

    Attributes:
        entries: those that wait, in order.
        waiting: what they are expected to take.
        at_door: what those on their way here are expected to take.
        virtual_tokens: the counter.
        charged: this flow, and those of the tenant in the classes that give way to this one.
        correction: of the waits that are estimated.
        line: those that were sent away and told when to come back.
    """

    __slots__ = (
        "at_door",
        "charged",
        "correction",
        "entries",
        "line",
        "service_class",
        "tenant",
        "virtual_tokens",
        "waiting",
    )

    def __init__(self, tenant: "TenantBooks", service_class: ServiceClass) -> None:
        self.tenant = tenant
        self.service_class = service_class
        self.entries: list[Entry] = []
        self.waiting = Work()
        self.at_door = Work()
        self.virtual_tokens = 0.0
        self.charged: tuple[Flow, ...] = ()
        self.line = RetryLine()
        self.correction = Correction()

    def charge(self, cost: float) -> None:
        """Count work done; a negative cost gives back."""
        amount = cost / self.tenant.terms.weight
        for flow in self.charged:
            flow.virtual_tokens += amount

    def index(self, entry: Entry) -> int:
        """How many of the tenant's requests in the class come before it."""
        return bisect_left(self.entries, entry.order, key=_ORDER)


class TenantBooks:
    """What is kept of one tenant.

    Attributes:
        terms: as they were when it last sent a request.
        flows: by class, the most urgent in front.
        num_queued, num_queued_bytes, num_queued_tokens: what counts towards the queue's bounds.
        num_running, num_slots, num_prefill_tokens, num_output_tokens: requests in the engine, what they take of its
            slots and prompt budget, and what they have generated.
        served_cost: what it was charged, without those outputs.
        lately: what it was served while others were here (`claims`).
    """

    __slots__ = (
        "flows",
        "habits",
        "lately",
        "num_output_tokens",
        "num_prefill_tokens",
        "num_queued",
        "num_queued_bytes",
        "num_queued_tokens",
        "num_running",
        "num_slots",
        "served_cost",
        "terms",
    )

    def __init__(self, terms: Tenant, everybody: Habits) -> None:
        self.terms = terms
        self.habits = Habits(everybody)
        self.flows = tuple(Flow(self, service_class) for service_class in ServiceClass)
        for rank, flow in enumerate(self.flows):
            flow.charged = self.flows[rank:]
        self.num_queued = self.num_queued_bytes = self.num_queued_tokens = 0
        self.num_running = self.num_slots = self.num_prefill_tokens = self.num_output_tokens = 0
        self.served_cost = 0.0
        self.lately = Lately()

    def expected_work(self, demand: Demand | None, weights: TokenWeights) -> Work:
        """Of one of its requests; None: it has not been tokenised. Outputs are taken to be as long as those that are
        over, or as those in the engine are by now: the first that end are short ones."""
        so_far = self.num_output_tokens / max(1, self.num_slots)
        return self.habits.expected_work(demand, weights, so_far)

    def served(self, weights: TokenWeights) -> float:
        """What it was charged, in all."""
        return self.served_cost + weights.output * self.num_output_tokens

    @property
    def may_run_more(self) -> bool:
        """Whether its concurrency allows another request in the engine."""
        limit = self.terms.max_concurrency
        return limit is None or self.num_running < limit

    @property
    def num_waiting(self) -> int:
        """Requests that could be let in."""
        return sum(len(flow.entries) for flow in self.flows)

    @property
    def is_idle(self) -> bool:
        """It has nothing here."""
        return self.num_queued == 0 and self.num_running == 0


class ClassQueue:
    """The flows of one class in which something waits. `waiting`: what all of it is expected to take."""

    def __init__(self) -> None:
        self.flows: dict[TenantId, Flow] = {}
        self.waiting = Work()
        self._last: Flow | None = None

    def lifted(self, flow: Flow) -> float:
        """The counter of a flow, as it is, or would be if one of its requests joined now."""
        if flow.entries:
            return flow.virtual_tokens
        floor = min((other.virtual_tokens for other in self.flows.values()), default=None)
        if floor is None:
            floor = flow.virtual_tokens if self._last is None else self._last.virtual_tokens
        return max(flow.virtual_tokens, floor)

    def add(self, entry: Entry) -> None:
        """It waits from now on."""
        flow = entry.flow
        flow.virtual_tokens = self.lifted(flow)
        insort(flow.entries, entry, key=_ORDER)
        flow.waiting.add(entry.work)
        self.waiting.add(entry.work)
        self.flows[flow.tenant.terms.id] = flow

    def remove(self, entry: Entry) -> None:
        """It waits no longer."""
        flow = entry.flow
        del flow.entries[flow.index(entry)]
        flow.waiting.add(entry.work, -1)
        self.waiting.add(entry.work, -1)
        if not flow.entries:
            del self.flows[flow.tenant.terms.id]
            self._last = flow


class FairQueue:
    """All classes, and every tenant that has been here."""

    def __init__(self) -> None:
        self.classes = tuple(ClassQueue() for _ in ServiceClass)

    @property
    def is_empty(self) -> bool:
        """Nobody waits."""
        return not any(queue.flows for queue in self.classes)

    def of(self, flow: Flow) -> ClassQueue:
        """The class of a flow."""
        return self.classes[flow.service_class.rank]

    def before(self, queue: ClassQueue) -> Sequence[ClassQueue]:
        """The classes that are more urgent than one."""
        return self.classes[: self.classes.index(queue)]

    @property
    def is_anything_urgent(self) -> bool:
        """Whether something waits that is not batch work."""
        return any(queue.flows for queue in self.classes[: ServiceClass.BATCH.rank])

    def urgent_in_order(self) -> Iterator[Entry]:
        """What waits and is not batch work, about as it will be let in: each class by the counters as they are now."""
        for queue in self.classes[: ServiceClass.BATCH.rank]:
            for flow in sorted(queue.flows.values(), key=attrgetter("virtual_tokens")):
                yield from flow.entries

    def ahead_of(self, flow: Flow, own: Work) -> Work:
        """What is let in before a request of a flow, if so much of the flow's own is: all that is more urgent, and of
        the other tenants of the class what they may have until their counters have passed."""
        ahead = Work()
        ahead.add(own)
        queue = self.of(flow)
        for urgent in self.before(queue):
            ahead.add(urgent.waiting)
        level = queue.lifted(flow) + own.cost / flow.tenant.terms.weight
        for other in queue.flows.values():
            if other is not flow:
                ahead.add(other.waiting, share_below(other, level))
        return ahead


def rise(flow: Flow) -> float:
    """From a flow's counter to the level below which all that waits in it is."""
    return max(1.0, flow.waiting.cost) / flow.tenant.terms.weight


def share_below(flow: Flow, level: float) -> float:
    """The part of what waits in a flow that its counter leaves room for below a level."""
    return min(1.0, max(0.0, (level - flow.virtual_tokens) / rise(flow)))
