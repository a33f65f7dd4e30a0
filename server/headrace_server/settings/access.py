"""The `auth` and `tenants` sections: who may call, for whom, and on what terms."""

from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from headrace_server.domain import Scope, ServiceClass
from headrace_server.settings.sections import ModelName, Section, TenantName

SigningAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class AuthMode(StrEnum):
    """Who may call."""

    KEYS = "keys"
    NONE = "none"


class SubjectRule(Section):
    """Whom a token's subject stands for."""

    subject: str = Field(
        min_length=1,
        max_length=512,
        description="`sub` of the token; `*` stands for anything: `system:serviceaccount:team-a:*`, "
        "`spiffe://example.org/ns/team-a/*`. The first rule that fits counts",
    )
    tenant: TenantName = Field(description="the tenant that it calls for")
    scopes: tuple[Scope, ...] = Field(
        (Scope.INFERENCE,), min_length=1, description="what it may do: `inference`, `admin`, `gateway`"
    )


class JwtSettings(Section):
    """Bearer tokens of an issuer, verified without asking it."""

    jwks_file: Path | None = Field(
        None, description="the issuer's public keys (JWKS); read again when it changes. Unset: no tokens are taken"
    )
    audience: str | None = Field(None, min_length=1, description="`aud` that a token must have; needed")
    issuer: str | None = Field(None, min_length=1, description="`iss` that a token must have; unset: any")
    algorithms: tuple[SigningAlgorithm, ...] = Field(
        ("RS256", "PS256", "ES256", "ES384", "EdDSA"), min_length=1, description="signatures that are taken"
    )
    subjects: tuple[SubjectRule, ...] = Field(())
    tenant_claim: str | None = Field(
        None, min_length=1, description="claim that names the tenant of subjects that no rule fits; unset: 401 for them"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.jwks_file is None:
            if self.audience or self.issuer or self.subjects or self.tenant_claim:
                raise ValueError("auth.jwt needs jwks_file")
            return self
        if self.audience is None:
            raise ValueError("auth.jwt needs an audience: tokens that were made for others must not open this server")
        if not self.subjects and self.tenant_claim is None:
            raise ValueError("auth.jwt needs subjects or tenant_claim: else no token has a tenant")
        return self


class AuthSettings(Section):
    """Who may call."""

    mode: AuthMode | None = Field(
        None,
        description="`keys` or `none`; unset: keys where there is a keys file, a key that `headrace keys create` made "
        "(also a revoked one) or `jwt`, else none and loopback only",
    )
    keys_file: Path | None = Field(
        None, description="file with one API key per line, and after a blank its tenant; `#` starts a comment"
    )
    keys_store: bool | Path = Field(
        True,
        description="take keys that `headrace keys create` made, from `server.state_dir` or the folder named here "
        "(a mounted Secret with `keys.json` and `pepper`); `false`: take none",
    )
    jwt: JwtSettings = Field(JwtSettings())
    isolate_prefixes: bool = Field(
        True,
        description="keep tenants from sharing prefix-cache blocks: how fast an answer begins would tell one what "
        "another one has sent",
    )

    @model_validator(mode="after")
    def _keys_come_from_somewhere(self) -> Self:
        if self.mode is AuthMode.KEYS and not self.may_have_keys:
            raise ValueError("auth.mode: keys needs auth.keys_file, auth.keys_store or auth.jwt")
        return self

    @property
    def names_keys(self) -> bool:
        """Whether the configuration itself says that callers need a key or a token."""
        return self.mode is AuthMode.KEYS or self.keys_file is not None or self.jwt.jwks_file is not None

    @property
    def may_have_keys(self) -> bool:
        """Whether there is anywhere that keys could come from."""
        return self.keys_file is not None or self.keys_store is not False or self.jwt.jwks_file is not None


class TenantSettings(Section):
    """One tenant: whoever shares a part of the server."""

    id: TenantName = Field(description="its name, for keys, tokens and metrics")
    weight: float = Field(1.0, gt=0, le=1e6, description="its part of an engine beside the others' while all wait")
    classes: tuple[ServiceClass, ...] = Field(
        tuple(ServiceClass), min_length=1, description="classes that it may ask for"
    )
    models: tuple[ModelName, ...] | None = Field(None, description="models that it may use; unset: all")
    max_concurrency: PositiveInt | None = Field(
        None, description="requests that it may have in an engine at a time; more wait"
    )
    tokens_per_minute: PositiveInt | None = Field(
        None, description="tokens (prompt, without cached ones, and output) that it may use; beyond: 429"
    )
    queue_share: float | None = Field(
        None, gt=0, le=1, description="part of the queue that its requests may take; unset: 1, with several tenants 0.5"
    )
