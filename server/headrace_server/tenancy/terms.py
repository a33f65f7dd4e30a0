"""What holds for a request beyond what it says itself: its tenant's terms, its class, its deadline, and what it may
share of the prefix cache."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace_server.domain import ServiceClass, Tenant, TenantId
from headrace_server.tenancy.keys import DEFAULT_TENANT
from headrace_server.tenancy.tenants import Tenants, allowed_class

_SALT_CHARS = 32


@dataclass(frozen=True, slots=True)
class Terms:
    """See the module.

    `default_class` is of requests that name none. `deadline_seconds`: of requests that have none, by class; a class
    that is missing has none. `salt_key`: secret of this process for `cache_salt`; None: tenants share the prefix cache.
    """

    tenants: Tenants = field(default_factory=Tenants)
    default_class: ServiceClass = ServiceClass.STANDARD
    deadline_seconds: Mapping[ServiceClass, float] = field(default_factory=dict)
    salt_key: bytes | None = field(default=None, repr=False)

    def service_class(self, tenant: Tenant, asked: ServiceClass | None) -> ServiceClass:
        """The class that a request gets which asks for this one (None: for none)."""
        return allowed_class(asked or self.default_class, tenant.classes)

    def cache_salt(self, tenant: TenantId) -> str | None:
        """What keeps a tenant's prefix-cache blocks apart from others'. Whoever names no tenant shares one cache."""
        if self.salt_key is None or tenant == DEFAULT_TENANT:
            return None
        return hmac.new(self.salt_key, tenant.encode(), hashlib.sha256).hexdigest()[:_SALT_CHARS]
