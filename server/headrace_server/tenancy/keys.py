"""API keys from a file, compared in constant time.

Only digests are kept in memory, and every key of the list is compared on every call, so that the time taken tells
nothing about which key was close. SHA-256 without salt is enough for keys that are random; short ones are refused.
"""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from headrace_server.domain import Caller, Scope, TenantId
from headrace_server.errors import Unauthenticated, UsageError

MIN_KEY_CHARS = 16
DEFAULT_TENANT = TenantId("default")
EVERYONE = Caller(DEFAULT_TENANT, frozenset({Scope.INFERENCE, Scope.ADMIN}))

_REFUSAL = "missing or wrong API key; send it as `Authorization: Bearer KEY`"


class Authenticator(Protocol):
    """Turns what a client presents into a caller."""

    def authenticate(self, presented: str | None) -> Caller:
        """The caller behind a presented key (None: none was sent).

        Raises:
            Unauthenticated: always the same, whatever is wrong.
        """


class OpenDoor:
    """Nobody needs a key."""

    def authenticate(self, presented: str | None) -> Caller:
        return EVERYONE


class KeyList:
    """A static list of keys; all of them are one tenant."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def authenticate(self, presented: str | None) -> Caller:
        digest = _digest(presented or "")
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthenticated(_REFUSAL)
        return EVERYONE


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys_file(path: Path) -> KeyList:
    """Keys from a file: one per line, `#` starts a comment.

    Raises:
        UsageError: unreadable, without a key, or with one under MIN_KEY_CHARS characters.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"auth.keys_file {path}: cannot be read ({type(error).__name__})") from error
    keys = [key for line in lines if (key := line.partition("#")[0].strip())]
    if not keys:
        raise UsageError(f"auth.keys_file {path}: holds no key")
    if any(len(key) < MIN_KEY_CHARS for key in keys):
        raise UsageError(f"auth.keys_file {path}: a key is shorter than {MIN_KEY_CHARS} characters")
    return KeyList(keys)
