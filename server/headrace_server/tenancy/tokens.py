"""Bearer tokens of an issuer (JWT), verified with its public keys from a file: nobody is asked, whatever a token says.

Takes what OpenID providers, Kubernetes (service accounts) and SPIFFE (JWT-SVID) issue. RFC 8725's advice, as far as it
is about receivers: only the configured algorithms, and only with a key made for them; no key, no address and no
extension that the token itself brings; `aud`, `exp` and `sub` are required. Every fault looks the same from outside.
"""

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from headrace_server.domain import Caller, Scope, TenantId
from headrace_server.tenancy.keys import TENANT_NAME
from headrace_server.tenancy.public_keys import KeyRing, read_key_ring
from headrace_server.tenancy.reloading import Reloaded

MAX_TOKEN_BYTES = 8 * 1024
LEEWAY_SECONDS = 30
# Whatever else a header holds would bring a key, name one elsewhere, or ask for what is not done here.
_KNOWN_HEADERS = frozenset({"alg", "kid", "typ", "x5t", "x5t#S256"})
_MAX_NAME_CHARS = 200
# Clients present the same token again and again, and a signature takes longer than the rest of a small request.
_MAX_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom tokens of a subject stand for; `pattern` is a subject with `*` for anything."""

    pattern: str
    tenant: TenantId
    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE})

    def fits(self, subject: str) -> bool:
        """Whether it is this one."""
        parts = map(re.escape, self.pattern.split("*"))
        return re.fullmatch(".*".join(parts), subject, re.DOTALL) is not None


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Which tokens are taken. `issuer` None: any that signs with a key of the file. `tenant_claim`: names the tenant of
    subjects that are not in `subjects`, None: those are refused."""

    audience: str
    algorithms: frozenset[str]
    subjects: Sequence[Subject] = ()
    issuer: str | None = None
    tenant_claim: str | None = None


class Tokens:
    """Callers by the tokens of one issuer.

    Raises:
        UsageError: the file of public keys cannot be used.
    """

    def __init__(
        self,
        jwks_file: Path,
        rules: TokenRules,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = rules
        self._now = now
        self._keys: Reloaded[KeyRing] = Reloaded([jwks_file], lambda: read_key_ring(jwks_file), monotonic=monotonic)
        self._keys_used = self._keys.current()
        self._good: dict[bytes, tuple[Caller, float]] = {}

    def find(self, presented: str) -> Caller | None:
        """See `CallerSource`."""
        if presented.count(".") != 2 or len(presented) > MAX_TOKEN_BYTES or not presented.isascii():
            return None
        digest = hashlib.sha256(presented.encode()).digest()
        return self._remembered(digest) or self._verified(presented, digest)

    def _remembered(self, digest: bytes) -> Caller | None:
        """The caller of a token that was verified with the keys of now and has not expired since."""
        keys = self._keys.current()
        if keys is not self._keys_used:
            self._keys_used = keys
            self._good.clear()
        caller, expires = self._good.get(digest, (None, 0.0))
        return caller if self._now() < expires else None

    def _verified(self, token: str, digest: bytes) -> Caller | None:
        try:
            claims = self._claims(token)
            caller, expires = self._caller(claims), float(claims["exp"])
        # Beside the library's own errors, what it lets through of documents that are no tokens.
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        if caller is not None:
            if len(self._good) >= _MAX_REMEMBERED:
                self._good.clear()
            self._good[digest] = caller, expires
        return caller

    def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a good token; raises for others."""
        header = jwt.get_unverified_header(token)
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not header.keys() <= _KNOWN_HEADERS or algorithm not in self._rules.algorithms:
            raise jwt.InvalidTokenError
        key = self._keys_used.key(str(key_id), algorithm)
        if key is None:
            raise jwt.InvalidKeyError
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=self._rules.audience,
            issuer=self._rules.issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["aud", "exp", "sub"]},
        )
        return claims

    def _caller(self, claims: dict[str, Any]) -> Caller | None:
        subject = str(claims["sub"])
        if not subject:
            return None
        name = subject[:_MAX_NAME_CHARS]
        for rule in self._rules.subjects:
            if rule.fits(subject):
                return Caller(rule.tenant, rule.scopes, name)
        tenant = claims.get(self._rules.tenant_claim) if self._rules.tenant_claim is not None else None
        if not isinstance(tenant, str) or not TENANT_NAME.fullmatch(tenant):
            return None
        return Caller(TenantId(tenant), key=name)
