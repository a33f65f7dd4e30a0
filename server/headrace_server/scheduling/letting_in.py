"""Who is let into the engine now, and which batch requests have to make room.

Strictly in the order of the fair queue: whoever cannot be let in for lack of room keeps out all that come after, so
that a large request is not overtaken for ever. Only those of its class for whom more of the reserve is open may go
before it, as long as they have had about as little: no more than a step's worth more, or than it will have had itself.
Tenants whose concurrency is used up are passed over, as if nothing of theirs waited.
"""

import heapq
import math
from collections.abc import Iterable

from headrace_server.scheduling.capacity import Capacity, Obstacle
from headrace_server.scheduling.claims import EVERYTHING, Claim, Claims
from headrace_server.scheduling.fair_queue import ClassQueue, Entry, FairQueue, TenantBooks
from headrace_server.scheduling.load import Load
from headrace_server.scheduling.running import Running, held_by


class LettingIn:
    """See the module. `present`: the tenants that have requests here."""

    def __init__(self, queue: FairQueue, capacity: Capacity, running: Running, claims: Claims) -> None:
        self._queue = queue
        self._capacity = capacity
        self._running = running
        self._claims = claims

    def admit(self, present: Iterable[TenantBooks], now: float) -> list[Entry]:
        """Let in who can be."""
        admitted: list[Entry] = []
        if self._queue.is_empty or self._is_full:
            return admitted
        weights = sum(tenant.terms.weight for tenant in present)
        for queue in self._queue.classes:
            self._admit_class(queue, weights, now, admitted)
            if any(flow.tenant.may_run_more for flow in queue.flows.values()):
                break
        return admitted

    def to_preempt(self, present: Iterable[TenantBooks]) -> list[Entry]:
        """The fewest batch requests, newest first, without which those could be let in who wait although they are more
        urgent."""
        victims = self._running.preemptible() if self._queue.is_anything_urgent else []
        if not victims:
            return []
        weights = sum(tenant.terms.weight for tenant in present)
        load = self._running.load_that_stays()
        chosen: list[Entry] = []
        for entry in self._queue.urgent_in_order():
            if not entry.tenant.may_run_more:
                continue
            going = self._in_the_way(entry, load, victims, weights)
            if going is None:
                break
            del victims[len(victims) - len(going) :]
            for victim in going:
                load.add(held_by(victim), -1)
            chosen += reversed(going)
            load.add(self._need(entry))
        return chosen

    def obstacle(self, entry: Entry, load: Load, weights: float) -> Obstacle | None:
        """Why a request that waits cannot join such a load; None: it can."""
        claim = self._claim(entry, load, weights)
        return self._capacity.obstacle(self._need(entry), load, claim)

    def free_slots(self, entry: Entry, load: Load, weights: float) -> int:
        """That are open to a request that waits, or would."""
        if self.obstacle(entry, load, weights) is Obstacle.MEMORY:
            return 0
        return self._capacity.free_slots(load, self._claim(entry, load, weights))

    def _need(self, entry: Entry) -> Load:
        """What a request that waits would take of the engine. Of slots no more than there are: a large request can be
        let in once the others have gone."""
        num_slots = 1 if entry.demand is None else entry.demand.num_sequences
        num_prefill_tokens = int(entry.work.num_computed_tokens)
        return Load(
            num_requests=1,
            num_slots=min(num_slots, self._capacity.slots),
            num_prompts=num_prefill_tokens > 0,
            num_prefill_tokens=num_prefill_tokens,
            num_tokens=entry.num_prompt_tokens,
        )

    def _admit(self, entry: Entry, load: Load, claim: Claim, now: float) -> None:
        """Let in a request that fits; one that does so only by a claim is counted as such."""
        need = self._need(entry)
        if load.num_requests > 0 and self._capacity.is_favour(need, load, claim):
            need.num_favoured_slots = need.num_slots
        if load.num_requests > 0 and not self._capacity.has_prompt_room(need, load):
            need.num_favoured_tokens = min(need.num_prefill_tokens, self._capacity.step_tokens)
        entry.is_favoured = claim.goes_first and not self._capacity.is_memory_short
        self._queue.of(entry.flow).remove(entry)
        self._running.admit(entry, need, now)

    @property
    def _is_full(self) -> bool:
        load = self._running.load
        return load.num_requests > 0 and self._capacity.free_slots(load, EVERYTHING) == 0

    def _admit_class(self, queue: ClassQueue, weights: float, now: float, admitted: list[Entry]) -> None:
        """`weights`: of all tenants that have requests here."""
        heap = [(flow.virtual_tokens, flow.entries[0].order, tenant) for tenant, flow in queue.flows.items()]
        heapq.heapify(heap)
        refused: Claim | None = None
        last = math.inf
        load = self._running.load_now
        while heap and heap[0][0] <= last and not self._is_full:
            counter, _, tenant_id = heapq.heappop(heap)
            flow = queue.flows[tenant_id]
            entry = flow.entries[0]
            claim = self._claim(entry, load, weights)
            if not flow.tenant.may_run_more or (refused is not None and not claim.is_more_than(refused)):
                continue
            if self._capacity.obstacle(self._need(entry), load, claim) is not None:
                refused = claim if refused is None else refused.together(claim)
                own = entry.work.cost / flow.tenant.terms.weight
                last = min(last, counter + max(self._capacity.step_tokens, own))
                continue
            self._admit(entry, load, claim, now)
            load = self._running.load_now
            admitted.append(entry)
            if flow.entries:
                heapq.heappush(heap, (flow.virtual_tokens, flow.entries[0].order, tenant_id))

    def _claim(self, entry: Entry, load: Load, weights: float) -> Claim:
        need = self._need(entry)
        claim = self._claims.of(entry, num_slots=need.num_slots, slot_limit=self._capacity.slots, weight_of_all=weights)
        return self._capacity.limited(claim, need, load)

    def _in_the_way(self, entry: Entry, load: Load, victims: list[Entry], weights: float) -> list[Entry] | None:
        """The last of the victims without which a request fits into a load; None: not even without all of them."""
        without, num_taken = load.copy(), 0
        while self.obstacle(entry, without, weights) is not None:
            if num_taken == len(victims):
                return None
            num_taken += 1
            without.add(held_by(victims[-num_taken]), -1)
        return victims[len(victims) - num_taken :]
