"""An issuer's public keys from a JWKS file (RFC 7517): each is used for the algorithms of its own kind only, so that a
public key is never taken for a shared secret. Private and symmetric keys, and those without a `kid`, are passed over.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from jwt.algorithms import AllowedPublicKeys

from headrace_server.errors import UsageError

MAX_FILE_BYTES = 1024**2
MIN_RSA_BITS = 2048

_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_ALGORITHMS: Mapping[tuple[str, str], frozenset[str]] = {
    ("RSA", ""): _RSA,
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA"}),
}


@dataclass(frozen=True, slots=True)
class _PublicKey:
    key: AllowedPublicKeys
    algorithms: frozenset[str]


class KeyRing:
    """Public keys by `kid`."""

    def __init__(self, keys: Mapping[str, _PublicKey]) -> None:
        self._keys = dict(keys)

    def key(self, key_id: str, algorithm: str) -> AllowedPublicKeys | None:
        """The key that signatures with `algorithm` are checked with; None: there is none of that name and kind."""
        found = self._keys.get(key_id)
        return found.key if found is not None and algorithm in found.algorithms else None


def read_key_ring(path: Path) -> KeyRing:
    """The keys of a file.

    Raises:
        UsageError: it cannot be read, is no JWKS, or holds no key that can be used.
    """
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        entries = json.loads(content)["keys"]
        keys = dict(found for entry in entries if (found := _public_key(entry)) is not None)
    except OSError as error:
        raise UsageError(f"auth.jwt.jwks_file {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, jwt.PyJWTError) as error:
        raise UsageError(f"auth.jwt.jwks_file {path}: not a set of public keys ({type(error).__name__})") from error
    if not keys:
        raise UsageError(f"auth.jwt.jwks_file {path}: holds no public key with a kid that can be used")
    return KeyRing(keys)


def _public_key(entry: Mapping[str, Any]) -> tuple[str, _PublicKey] | None:
    """One key and its id; None: it is of a kind that is not used here."""
    key_id = entry.get("kid")
    algorithms = _ALGORITHMS.get((str(entry.get("kty")), str(entry.get("crv", ""))))
    if not isinstance(key_id, str) or algorithms is None or "d" in entry or entry.get("use", "sig") != "sig":
        return None
    if "alg" in entry:
        algorithms &= {entry["alg"]}
    key = jwt.PyJWK(dict(entry), algorithm=min(algorithms, default=None)).key if algorithms else None
    if key is None or getattr(key, "key_size", MIN_RSA_BITS) < MIN_RSA_BITS and entry["kty"] == "RSA":
        return None
    return key_id, _PublicKey(key, algorithms)
