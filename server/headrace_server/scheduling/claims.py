"""Who may use what is kept in reserve: interactive requests, and tenants that have had little.

What a tenant has had is looked at in two ways, because slots are held for long and prompts pass. It has few slots if it
would still hold at most half of its share of them. It was served little if, of what the engine did lately for all
together, at most half of its share was for it, what is being computed included: so a few requests that come at once are
no flood, and a flood is one even while none of its prompts is in the engine. What was done for a tenant while it was
alone does not count: nobody else wanted it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from headrace_server.domain import ServiceClass
from headrace_server.scheduling.costs import TokenWeights
from headrace_server.scheduling.fair_queue import Entry, TenantBooks
from headrace_server.scheduling.lately import Lately
from headrace_server.scheduling.running import Running


@dataclass(frozen=True, slots=True)
class Claim:
    """What of the reserve is open to a request.

    `kept`: the part of the reserved slots that is kept from it. `may_exceed`: it may take slots beyond the measured
    limit. `has_prompt_room`: it may use a step's worth of prompt tokens that is kept for those who have a claim to it.
    `goes_first`: in the engine, of those of its class that wait there.
    """

    kept: float = 1.0
    may_exceed: bool = False
    has_prompt_room: bool = False
    goes_first: bool = False

    def is_more_than(self, other: "Claim") -> bool:
        """Whether something is open to this one that is not open to the other."""
        return (
            self.kept < other.kept
            or (self.has_prompt_room and not other.has_prompt_room)
            or (self.goes_first and not other.goes_first)
        )

    def together(self, other: "Claim") -> "Claim":
        """What is open to one of them, or the other."""
        return Claim(
            min(self.kept, other.kept),
            may_exceed=self.may_exceed or other.may_exceed,
            has_prompt_room=self.has_prompt_room or other.has_prompt_room,
            goes_first=self.goes_first or other.goes_first,
        )


ORDINARY = Claim()
EVERYTHING = Claim(kept=0.0, may_exceed=True, has_prompt_room=True, goes_first=True)

# Of the reserved slots, what is kept from tenants that hold many, and (True) from those that hold few.
_KEPT_FROM_INTERACTIVE = {False: 0.5, True: 0.0}
_KEPT_FROM_STANDARD = {False: 1.0, True: 0.25}


class Claims:
    """See the module. What was served is known as of the last time that this was told the time."""

    def __init__(self, running: Running, weights: TokenWeights) -> None:
        self._running = running
        self._weights = weights
        self._all = Lately()
        self._now = 0.0

    def look(self, now: float) -> None:
        """What was served lately is looked at as it is now."""
        self._now = now

    def engine_changed(self, tenants: Iterable[TenantBooks], now: float) -> None:
        """Totals begin again."""
        for tenant in tenants:
            tenant.lately.skip(tenant.served(self._weights), now)

    def come(self, others: Collection[TenantBooks], now: float) -> None:
        """A tenant has come to those who have requests here."""
        if len(others) == 1:
            for alone in others:
                alone.lately.skip(alone.served(self._weights), now)
            self._all.skip(self._running.served_cost, now)

    def go(self, tenant: TenantBooks, others: Collection[TenantBooks], now: float) -> None:
        """A tenant has left the others."""
        if not others:
            tenant.lately.skip(tenant.served(self._weights), now)
        elif len(others) == 1:
            for alone in others:
                alone.lately.read(alone.served(self._weights), now)
            self._all.read(self._running.served_cost, now)

    def of(self, entry: Entry, *, num_slots: int, slot_limit: int, weight_of_all: float) -> Claim:
        """A request's, which needs so many slots of so many. `weight_of_all`: of all tenants that have requests."""
        service_class, tenant = entry.arrival.service_class, entry.tenant
        if service_class is ServiceClass.BATCH:
            return ORDINARY
        is_interactive = service_class is ServiceClass.INTERACTIVE
        weight = tenant.terms.weight
        half_share = weight / (2 * max(weight_of_all, weight))
        has_few_slots = tenant.num_slots == 0 or tenant.num_slots + num_slots <= half_share * slot_limit
        was_served_little = weight < weight_of_all and self._was_served_little(tenant, half_share)
        kept = _KEPT_FROM_INTERACTIVE if is_interactive else _KEPT_FROM_STANDARD
        return Claim(
            kept[has_few_slots],
            may_exceed=has_few_slots,
            has_prompt_room=is_interactive or was_served_little,
            goes_first=was_served_little,
        )

    def _was_served_little(self, tenant: TenantBooks, half_share: float) -> bool:
        by_all = self._all.read(self._served_to_all, self._now)
        return tenant.lately.read(self._served(tenant), self._now) <= half_share * by_all

    def _served(self, tenant: TenantBooks) -> float:
        """In all, with what is being computed."""
        return tenant.served(self._weights) + self._weights.prompt * tenant.num_prefill_tokens

    @property
    def _served_to_all(self) -> float:
        return self._running.served_cost + self._weights.prompt * self._running.load.num_prefill_tokens
