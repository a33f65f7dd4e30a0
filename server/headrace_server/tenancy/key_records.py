"""What is stored of a key: never the key. A record outlives the key, so that revoking the last one opens nothing.

A key is `hr-ID-SECRET`: the id (8 characters) names it in lists and logs, the secret is 256 random bits. Its digest is
an HMAC-SHA256 of the whole key under the installation's pepper; a slow hash would protect nothing more, because nobody
can try 2^256 secrets.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from headrace_server.domain import Caller, Scope, TenantId

KEY_PREFIX = "hr-"
ID_CHARS = 8
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # without what looks alike
_SECRET_BYTES = 32
_VERSION = 1


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key of the store. Times are in seconds since the epoch; `expires` None: never, `revoked` None: it is not."""

    id: str
    digest: bytes = field(repr=False)
    tenant: TenantId
    scopes: frozenset[Scope]
    created: int
    name: str = ""
    expires: int | None = None
    revoked: int | None = None

    @property
    def caller(self) -> Caller:
        """Who comes with it."""
        return Caller(self.tenant, self.scopes, KEY_PREFIX + self.id)

    def is_good(self, now: float) -> bool:
        """Whether it opens."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def new_key(taken: Iterable[str]) -> tuple[str, str]:
    """A key and its id, which is none of those that are taken."""
    known = set(taken)
    while (id := "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_CHARS))) in known:
        pass
    return id, f"{KEY_PREFIX}{id}-{secrets.token_urlsafe(_SECRET_BYTES)}"


def digest_of(key: str, pepper: bytes) -> bytes:
    """What is stored of a key and compared."""
    return hmac.new(pepper, key.encode("utf-8", "surrogateescape"), hashlib.sha256).digest()


def written(records: Iterable[KeyRecord]) -> bytes:
    """The store's file."""
    keys = [
        {
            "id": record.id,
            "digest": record.digest.hex(),
            "tenant": record.tenant,
            "scopes": sorted(record.scopes),
            "name": record.name,
            "created": record.created,
            "expires": record.expires,
            "revoked": record.revoked,
        }
        for record in records
    ]
    return json.dumps({"version": _VERSION, "keys": keys}, indent=1).encode() + b"\n"


def parsed(document: bytes) -> tuple[KeyRecord, ...]:
    """The records of a store's file.

    Raises:
        ValueError: it is not one.
    """
    try:
        content = json.loads(document)
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']!r} is unknown")
        return tuple(map(_record, content["keys"]))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not a store of keys") from error


def _record(fields: dict[str, Any]) -> KeyRecord:
    return KeyRecord(
        id=str(fields["id"]),
        digest=bytes.fromhex(fields["digest"]),
        tenant=TenantId(str(fields["tenant"])),
        scopes=frozenset(map(Scope, fields["scopes"])),
        name=str(fields["name"]),
        created=int(fields["created"]),
        expires=_time(fields["expires"]),
        revoked=_time(fields["revoked"]),
    )


def _time(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int):
        raise ValueError("a time is not a number of seconds")
    return value
