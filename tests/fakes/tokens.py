"""An issuer of tokens: its keys, its file of public keys, and tokens as good or as bad as a test wants them."""

import base64
import json
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

AUDIENCE = "headrace"
SUBJECT = "system:serviceaccount:team-a:app"


@cache
def private_key(kind: str) -> PrivateKeyTypes:
    """A key of a kind (`rsa`, `rsa-1024`, `p256`, `p384`, `ed25519`), always the same in one run."""
    match kind:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ed25519":
            return Ed25519PrivateKey.generate()
        case "rsa-1024":
            return rsa.generate_private_key(65537, 1024)
        case _:
            return rsa.generate_private_key(65537, 2048)


_ALGORITHMS = {"p256": "ES256", "p384": "ES384", "ed25519": "EdDSA"}


def jwk(kind: str, key_id: str, **fields: Any) -> dict[str, Any]:
    """A public key as an entry of a JWKS file."""
    algorithm: Any = get_default_algorithms()[_ALGORITHMS.get(kind, "RS256")]
    return {**algorithm.to_jwk(private_key(kind).public_key(), as_dict=True), "kid": key_id, **fields}


def public_pem(kind: str) -> bytes:
    """A public key as text, which careless verifiers take for a secret."""
    return private_key(kind).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_file(*keys: dict[str, Any]) -> str:
    """A JWKS file."""
    return json.dumps({"keys": keys})


@dataclass(frozen=True, slots=True)
class Issuer:
    """Signs with one key."""

    kind: str = "p256"
    key_id: str = "k1"
    algorithm: str = "ES256"
    claims: dict[str, Any] = field(default_factory=dict)

    def token(self, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A good token, but for what is given; a claim or header that is None is left out."""
        now = int(time.time())
        known = {"sub": SUBJECT, "aud": AUDIENCE, "exp": now + 600, "iat": now, **self.claims, **claims}
        payload = {name: value for name, value in known.items() if value is not None}
        names = {"kid": self.key_id, **(headers or {})}
        return jwt.encode(payload, private_key(self.kind), self.algorithm, names)  # type: ignore[arg-type]


def assembled(header: dict[str, Any], payload: dict[str, Any] | bytes, signature: bytes = b"") -> str:
    """A token of these parts, however little sense they make."""
    parts = (
        json.dumps(header).encode(),
        payload if isinstance(payload, bytes) else json.dumps(payload).encode(),
        signature,
    )
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
