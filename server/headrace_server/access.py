"""Settings → who may call and on what terms: the door, the tenants' terms, their quotas, and the ledger.

Files of keys are read here, so that one that cannot be used is one line and exit code 2.
"""

import logging
import secrets
from dataclasses import dataclass
from pathlib import Path

from headrace_server.domain import ModelId, ServiceClass, Tenant, TenantId
from headrace_server.errors import UsageError
from headrace_server.settings.access import AuthMode, AuthSettings, JwtSettings, TenantSettings
from headrace_server.settings.scheduling import SchedulingSettings
from headrace_server.settings.schema import Settings, is_loopback
from headrace_server.tenancy.callers import Callers
from headrace_server.tenancy.key_store import KeyStore
from headrace_server.tenancy.keys import Authenticator, CallerSource, OpenDoor, read_keys_file
from headrace_server.tenancy.quotas import Quotas
from headrace_server.tenancy.state_files import state_directory
from headrace_server.tenancy.stored_keys import StoredKeys
from headrace_server.tenancy.tenants import Tenants, default_queue_share
from headrace_server.tenancy.terms import Terms
from headrace_server.tenancy.usage import Ledger

logger = logging.getLogger(__name__)

_SALT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Access:
    """Everything about callers that a server needs."""

    authenticator: Authenticator
    terms: Terms
    quotas: Quotas
    ledger: Ledger


def build_access(settings: Settings) -> Access:
    """Settings → access.

    Raises:
        UsageError: a file of keys that cannot be used; a server that others can reach and that asks for no key.
    """
    tenants = Tenants(_tenants(settings))
    return Access(
        build_authenticator(settings),
        Terms(
            tenants,
            settings.scheduling.default_class,
            _deadlines(settings.scheduling),
            secrets.token_bytes(_SALT_BYTES) if settings.auth.isolate_prefixes else None,
        ),
        Quotas({tenant.id: limit for tenant in tenants.configured if (limit := tenant.tokens_per_minute) is not None}),
        Ledger(state_directory(settings.server.state_dir) / "usage.json"),
    )


def key_store(settings: Settings) -> KeyStore | None:
    """Where `headrace keys` keeps keys; None: they do not count."""
    match settings.auth.keys_store:
        case False:
            return None
        case True:
            return KeyStore(state_directory(settings.server.state_dir))
        case folder:
            return KeyStore(state_directory(folder))


def build_authenticator(settings: Settings) -> Authenticator:
    """Who decides about keys.

    Raises:
        UsageError: see `build_access`.
    """
    auth = settings.auth
    if auth.mode is AuthMode.NONE:
        return OpenDoor()
    store, sources = key_store(settings), _sources(auth)
    callers = Callers(sources, StoredKeys(store) if store is not None else None, always=auth.names_keys)
    if callers.are_needed and not sources and store is not None and not store.exists:
        logger.warning("no_key_exists", extra={"detail": "make one: headrace keys create --tenant NAME"})
    if not callers.are_needed and not is_loopback(settings.server.host):
        raise UsageError(
            f"server.host {settings.server.host} can be reached from other machines and nobody needs a key: "
            "make one (headrace keys create --tenant NAME), set auth.keys_file or auth.jwt, "
            "or auth.mode: none to allow everyone"
        )
    return callers


def _sources(auth: AuthSettings) -> list[CallerSource]:
    sources: list[CallerSource] = []
    if auth.keys_file is not None:
        sources.append(read_keys_file(auth.keys_file))
    if auth.jwt.jwks_file is not None:
        sources.append(_tokens(auth.jwt, auth.jwt.jwks_file))
    return sources


def _tokens(jwt: JwtSettings, jwks_file: Path) -> CallerSource:
    """Imported here: cryptography takes longer than all of this, and most servers take no tokens."""
    from headrace_server.tenancy.tokens import Subject, TokenRules, Tokens

    subjects = [Subject(rule.subject, TenantId(rule.tenant), frozenset(rule.scopes)) for rule in jwt.subjects]
    rules = TokenRules(
        audience=jwt.audience or "",
        algorithms=frozenset(jwt.algorithms),
        subjects=tuple(subjects),
        issuer=jwt.issuer,
        tenant_claim=jwt.tenant_claim,
    )
    return Tokens(jwks_file.expanduser(), rules)


def _tenants(settings: Settings) -> list[Tenant]:
    ids = {name: ModelId(model.id) for model in settings.models for name in (model.id, *model.aliases)}
    share = default_queue_share(len(settings.tenants))
    return [_tenant(tenant, ids, share) for tenant in settings.tenants]


def _tenant(settings: TenantSettings, ids: dict[str, ModelId], share: float) -> Tenant:
    """`ids`: the model behind each name; a name of none stays, and nobody gets anything for it."""
    models = settings.models
    return Tenant(
        TenantId(settings.id),
        weight=settings.weight,
        classes=frozenset(settings.classes),
        models=None if models is None else frozenset(ids.get(name, ModelId(name)) for name in models),
        max_concurrency=settings.max_concurrency,
        tokens_per_minute=settings.tokens_per_minute,
        queue_share=share if settings.queue_share is None else settings.queue_share,
    )


def _deadlines(scheduling: SchedulingSettings) -> dict[ServiceClass, float]:
    classes = scheduling.classes
    seconds = {
        ServiceClass.INTERACTIVE: classes.interactive.deadline_seconds,
        ServiceClass.STANDARD: classes.standard.deadline_seconds,
        ServiceClass.BATCH: classes.batch.deadline_seconds,
    }
    return {service_class: value for service_class, value in seconds.items() if value is not None}
