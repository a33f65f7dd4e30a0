"""Who is let into the queue: its bounds in requests, bytes and prompt tokens, the waits that its classes and requests
allow, and what those are told who are sent away.

Of each bound a tenant may take its share. While some of a tenant's requests are expected back, its others may take less
than all, so that there is room for those. An empty queue takes anything but, once it is known what they need, requests
that cannot be served by their deadline.
"""

from headrace_server.queueing import Refusal, RefusalReason
from headrace_server.scheduling.costs import Work
from headrace_server.scheduling.estimator import Estimator
from headrace_server.scheduling.fair_queue import Entry, FairQueue, Flow, TenantBooks
from headrace_server.scheduling.options import QueueOptions

_SHARE_BESIDE_RETURNERS = 0.75  # of a bound
_WAIT_BESIDE_RETURNERS = 0.05  # of the longest wait; and what those who come back will find
_SPACING = 1.15  # of those who are told to come back: what they leave free, others take
_WAIT_ONCE_TOKENISED = 1.25  # of the longest wait: something has been spent on it


class Door:
    """Counts what is in the queue or on its way there, and says who may join."""

    def __init__(self, options: QueueOptions, queue: FairQueue, estimator: Estimator) -> None:
        self.num_requests = self.num_bytes = self.num_tokens = 0
        self._options = options
        self._queue = queue
        self._estimator = estimator

    def enter(self, entry: Entry, times: int = 1) -> None:
        """It counts from now on; -1: no longer."""
        num_bytes = times * entry.arrival.num_bytes
        self.num_requests += times
        self.num_bytes += num_bytes
        entry.tenant.num_queued += times
        entry.tenant.num_queued_bytes += num_bytes

    def enter_tokens(self, entry: Entry, times: int = 1) -> None:
        """The like for its prompt."""
        self.num_tokens += times * entry.num_prompt_tokens
        entry.tenant.num_queued_tokens += times * entry.num_prompt_tokens

    def refuse_newcomer(self, entry: Entry, wait_seconds: float | None, now: float) -> Refusal | None:
        """Why a request cannot come in; nothing is known of it but its size."""
        if self.num_requests == 0:
            return None
        if _is_past(entry, now + (wait_seconds or 0.0)):
            return Refusal(RefusalReason.DEADLINE_UNMEETABLE)
        line = entry.flow.line
        is_expected = line.is_expected(now)
        has_precedence = is_expected or not line
        reason = self._beyond_bounds(entry, 1.0 if has_precedence else _SHARE_BESIDE_RETURNERS)
        if reason is not None:
            return self._refusal(entry, reason, wait_seconds, now)
        wait_share = 1.0 if has_precedence else _WAIT_BESIDE_RETURNERS
        return self._refuse_for_wait(entry, wait_seconds, wait_share, now)

    def refuse_tokenised(self, entry: Entry, wait_seconds: float | None, now: float) -> Refusal | None:
        """Why a request that is here cannot wait in the queue, now that it is known what it needs."""
        if self._is_too_late(entry, wait_seconds, now):
            return Refusal(RefusalReason.DEADLINE_UNMEETABLE)
        if self._queue.is_empty:
            return None
        reason = self._beyond_tokens(entry.tenant, entry.num_prompt_tokens)
        if reason is not None:
            return self._refusal(entry, reason, wait_seconds, now)
        return self._refuse_for_wait(entry, wait_seconds, _WAIT_ONCE_TOKENISED, now)

    def _beyond_bounds(self, entry: Entry, share: float) -> RefusalReason | None:
        options, tenant = self._options, entry.tenant
        own_share = tenant.terms.queue_share * share
        num_bytes = entry.arrival.num_bytes
        if _is_beyond(tenant.num_queued, 1, own_share * options.max_requests) or _is_beyond(
            tenant.num_queued_bytes, num_bytes, own_share * options.max_bytes
        ):
            return _whose(tenant)
        if _is_beyond(self.num_requests, 1, share * options.max_requests) or _is_beyond(
            self.num_bytes, num_bytes, share * options.max_bytes
        ):
            return RefusalReason.QUEUE_FULL
        return None

    def _beyond_tokens(self, tenant: TenantBooks, num_tokens: int) -> RefusalReason | None:
        most = self._options.max_tokens
        if _is_beyond(tenant.num_queued_tokens, num_tokens, tenant.terms.queue_share * most):
            return _whose(tenant)
        return RefusalReason.QUEUE_FULL if _is_beyond(self.num_tokens, num_tokens, most) else None

    def _refuse_for_wait(self, entry: Entry, wait_seconds: float | None, share: float, now: float) -> Refusal | None:
        most = self._most_seconds(entry.flow)
        if wait_seconds is not None and most is not None and wait_seconds > share * most:
            return self._refusal(entry, RefusalReason.WAIT_TOO_LONG, wait_seconds, now)
        return None

    def _is_too_late(self, entry: Entry, wait_seconds: float | None, now: float) -> bool:
        """Whether its deadline will have passed before its turn comes, or before its answer can be whole."""
        begins_at = now + (wait_seconds or 0.0)
        if _is_past(entry, begins_at):
            return True
        if not _is_past(entry, begins_at + self._estimator.least_service_seconds(entry)):
            return False
        entry.tenant.habits.doubt()
        return True

    def _refusal(self, entry: Entry, reason: RefusalReason, wait_seconds: float | None, now: float) -> Refusal:
        """Tell it to come back once those before it have: when a place comes free, or the wait is short enough."""
        gap = self._seconds_between_turns(entry.flow)
        if gap is None or wait_seconds is None:
            return Refusal(reason)
        most = self._most_seconds(entry.flow)
        soon = wait_seconds / 2 if most is None else _WAIT_BESIDE_RETURNERS * most
        seconds = len(entry.flow.line) * gap + max(gap, wait_seconds - soon)
        return Refusal(reason, entry.flow.line.tell(seconds, now))

    def _seconds_between_turns(self, flow: Flow) -> float | None:
        """Of one tenant, beside the others of its class that wait."""
        typical = flow.tenant.expected_work(None, self._options.weights)
        weights = sum(other.tenant.terms.weight for other in self._queue.of(flow).flows.values() if other is not flow)
        own_weight = flow.tenant.terms.weight
        turn = Work()
        turn.add(typical, _SPACING * (own_weight + weights) / own_weight)
        return self._estimator.seconds_of(turn)

    def _most_seconds(self, flow: Flow) -> float | None:
        return self._options.max_wait_seconds.get(flow.service_class)


def _is_past(entry: Entry, when: float) -> bool:
    deadline = entry.arrival.deadline
    return deadline is not None and when > deadline


def _is_beyond(amount: int, more: int, bound: float) -> bool:
    """Whether it would be too much; not if there is nothing yet."""
    return amount > 0 and amount + more > bound


def _whose(tenant: TenantBooks) -> RefusalReason:
    return RefusalReason.TENANT_QUEUE_FULL if tenant.terms.queue_share < 1 else RefusalReason.QUEUE_FULL
