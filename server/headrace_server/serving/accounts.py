"""What a request costs its tenant, and how long it took: told to quotas, ledger and metrics as it happens.

`generated` is called for every token of every request: nothing here looks anything up per token, and quotas, which
would cost as much as all the rest, hear of several at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from headrace_server.domain import ModelId, ServiceClass, TenantId
from headrace_server.errors import QuotaExceeded
from headrace_server.observability.request_metrics import Meters, RequestMetrics
from headrace_server.queueing import RefusalReason, TenantReader

_TOKENS_PER_SPENDING = 16


class Quotas(Protocol):
    """Tenants' tokens per minute."""

    def check(self, tenant: TenantId, now: float) -> None:
        """Raise QuotaExceeded if the tenant has none left."""

    def spend(self, tenant: TenantId, num_tokens: int, now: float) -> None:
        """So many were used, whether they were left or not."""


class Ledger(Protocol):
    """Who used how much."""

    def add(self, tenant: TenantId, model: ModelId, computed: int, cached: int, output: int, /) -> None:
        """A request is over that was served. Tokens: of prompts that were computed, that were cached, of outputs."""


class _Unlimited:
    def check(self, tenant: TenantId, now: float) -> None:
        pass

    def spend(self, tenant: TenantId, num_tokens: int, now: float) -> None:
        pass


class _Forgetful:
    def add(self, tenant: TenantId, model: ModelId, computed: int, cached: int, output: int, /) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Customer:
    """For whom a request is served."""

    tenant: TenantId
    service_class: ServiceClass
    model: ModelId


class Accounts:
    """Opens an account for each request. `tenants`: their terms."""

    def __init__(
        self,
        tenants: TenantReader,
        *,
        quotas: Quotas | None = None,
        ledger: Ledger | None = None,
        metrics: RequestMetrics | None = None,
    ) -> None:
        self._tenants = tenants
        self._quotas: Quotas = quotas or _Unlimited()
        self._ledger: Ledger = ledger or _Forgetful()
        self._metrics = metrics or RequestMetrics()

    def meters(self, customer: Customer) -> Meters:
        """Where a customer's requests are counted."""
        return self._metrics.meters(customer.model, customer.service_class, customer.tenant)

    def check(self, customer: Customer, now: float) -> None:
        """Raise QuotaExceeded if the tenant has used up its tokens."""
        try:
            self._quotas.check(customer.tenant, now)
        except QuotaExceeded as error:
            self.meters(customer).refused[error.code] += 1
            raise

    def open(self, customer: Customer, now: float) -> "Account":
        """The account of a request that has come to the door."""
        spend = self._quotas.spend if self._tenants(customer.tenant).tokens_per_minute is not None else None
        return Account(customer, self.meters(customer), spend, self._ledger, now)


class Account:
    """One request's. `queue_seconds`: its waits so far, those that have ended; None: none has."""

    def __init__(
        self,
        customer: Customer,
        meters: Meters,
        spend: Callable[[TenantId, int, float], None] | None,
        ledger: Ledger,
        now: float,
    ) -> None:
        self.queue_seconds: float | None = None
        self._customer = customer
        self._meters = meters
        self._spend = spend
        self._ledger = ledger
        self._arrived_at = now
        self._admitted_at: float | None = None
        self._token_at: float | None = None
        self._has_gaps = True
        self._num_computed = self._num_cached = self._num_output = 0
        self._num_owed = 0

    def admitted(self, waited_seconds: float, now: float, *, num_sequences: int) -> None:
        """It is let in, again perhaps. The gaps between tokens say nothing where several sequences take turns, or where
        tokens were thrown away."""
        self.queue_seconds = (self.queue_seconds or 0.0) + waited_seconds
        self._has_gaps = num_sequences == 1 and self._token_at is None
        if self._admitted_at is None:
            self._admitted_at = now

    def sent_back(self, now: float) -> None:
        """What was done for it is lost: its tenant is not asked to pay for it."""
        self._num_owed -= self._num_computed + self._num_output
        self._pay(now)
        self._num_computed = self._num_cached = self._num_output = 0

    def began(self, num_computed_tokens: int, num_cached_tokens: int, now: float) -> None:
        """See `domain.Seat.began`."""
        self._num_computed += num_computed_tokens
        self._num_cached += num_cached_tokens
        self._meters.num_computed_tokens += num_computed_tokens
        self._meters.num_cached_tokens += num_cached_tokens
        self._num_owed += num_computed_tokens
        self._pay(now)

    def generated(self, num_tokens: int, now: float) -> None:
        """See `domain.Seat.generated`."""
        self._num_output += num_tokens
        self._meters.num_output_tokens += num_tokens
        if self._token_at is None:
            self._meters.ttft.observe(now - self._arrived_at)
        elif self._has_gaps:
            self._meters.itl.observe(now - self._token_at)
        self._token_at = now
        self._num_owed += num_tokens
        if self._num_owed >= _TOKENS_PER_SPENDING:
            self._pay(now)

    def count_refusal(self, reason: RefusalReason) -> None:
        """It is not served."""
        self._meters.refused[reason] += 1

    def count_preemption(self) -> None:
        """It has to give way."""
        self._meters.num_preempted += 1

    def close(self, now: float) -> None:
        """The request is over. One that was never let in has cost nothing."""
        if self._admitted_at is None:
            return
        self._pay(now)
        self._meters.queue_wait.observe(self.queue_seconds or 0.0)
        self._meters.service.observe(now - self._admitted_at)
        self._ledger.add(
            self._customer.tenant, self._customer.model, self._num_computed, self._num_cached, self._num_output
        )

    def _pay(self, now: float) -> None:
        if self._spend is not None and self._num_owed:
            self._spend(self._customer.tenant, self._num_owed, now)
        self._num_owed = 0
