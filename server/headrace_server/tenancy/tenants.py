"""Tenants: on what terms each is served, the ones that nobody configured included."""

from collections.abc import Iterable

from headrace_server.domain import ServiceClass, Tenant, TenantId

# Where there are several, none may fill the queue alone.
_SHARE_AMONG_SEVERAL = 0.5


def default_queue_share(num_tenants: int) -> float:
    """The part of the queue that a tenant may take of which nothing is said, beside so many configured ones."""
    return 1.0 if num_tenants <= 1 else _SHARE_AMONG_SEVERAL


class Tenants:
    """Knows every id: one that was not configured has the default terms. `tenant` is a `queueing.TenantReader`.

    Attributes:
        configured: those of the configuration.
    """

    def __init__(self, configured: Iterable[Tenant] = ()) -> None:
        self.configured = tuple(configured)
        self._known = {tenant.id: tenant for tenant in self.configured}
        self._share = default_queue_share(len(self.configured))

    def tenant(self, id: TenantId) -> Tenant:
        """The terms of a tenant."""
        return self._known.get(id) or Tenant(id, queue_share=self._share)

    def is_configured(self, id: TenantId) -> bool:
        """Whether the configuration names it: only such ids are a bounded set."""
        return id in self._known


def allowed_class(asked: ServiceClass, allowed: frozenset[ServiceClass]) -> ServiceClass:
    """The best class that is allowed and no better than what was asked for; the least one where all are better."""
    by_rank = sorted(allowed, key=lambda service_class: service_class.rank)
    return next((one for one in by_rank if one.rank >= asked.rank), by_rank[-1])
