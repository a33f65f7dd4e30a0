"""Who is behind a key: what every source of callers has in common, and the keys of a file.

Only digests are kept in memory, and every key of the list is compared on every call, so that the time taken tells
nothing about which key was close. SHA-256 without salt is enough for keys that are random; short ones are refused.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from headrace_server.domain import Caller, Scope, TenantId
from headrace_server.errors import Unauthenticated, UsageError

MIN_KEY_CHARS = 16
DEFAULT_TENANT = TenantId("default")
EVERYONE = Caller(DEFAULT_TENANT, frozenset({Scope.INFERENCE, Scope.ADMIN}))
TENANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,63}")

_REFUSAL = "missing or wrong API key; send it as `Authorization: Bearer KEY`"


def refusal() -> Unauthenticated:
    """What anybody is told who has no good key, whatever is wrong with it."""
    return Unauthenticated(_REFUSAL)


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


class CallerSource(Protocol):
    """Knows some callers."""

    def find(self, presented: str) -> Caller | None:
        """Who presents this; None: nobody known. Takes equally long for every key that is not good."""


class KeyList:
    """A static list of keys: of one tenant, that may do everything, or of the callers of a mapping."""

    def __init__(self, keys: Iterable[str] | Mapping[str, Caller]) -> None:
        callers = keys if isinstance(keys, Mapping) else dict.fromkeys(keys, EVERYONE)
        self._callers = tuple((_digest(key), caller) for key, caller in callers.items())

    def find(self, presented: str) -> Caller | None:
        digest = _digest(presented)
        found = [caller for known, caller in self._callers if hmac.compare_digest(digest, known)]
        return found[0] if found else None

    def authenticate(self, presented: str | None) -> Caller:
        caller = self.find(presented or "")
        if caller is None:
            raise refusal()
        return caller


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys_file(path: Path) -> KeyList:
    """Keys from a file: one per line, after a blank the tenant that it is for; `#` starts a comment.

    A key without a tenant is the operator's own and may do everything; one with a tenant is for inference.

    Raises:
        UsageError: unreadable, without a key, or with a line that is not one.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"auth.keys_file {path}: cannot be read ({type(error).__name__})") from error
    callers: dict[str, Caller] = {}
    for words in (line.partition("#")[0].split() for line in lines):
        if words:
            _add(callers, words, path)
    if not callers:
        raise UsageError(f"auth.keys_file {path}: holds no key")
    return KeyList(callers)


def _add(callers: dict[str, Caller], words: list[str], path: Path) -> None:
    key, *tenants = words
    if len(key) < MIN_KEY_CHARS:
        raise UsageError(f"auth.keys_file {path}: a key is shorter than {MIN_KEY_CHARS} characters")
    if len(tenants) > 1 or not all(map(TENANT_NAME.fullmatch, tenants)):
        raise UsageError(f"auth.keys_file {path}: a line is not a key, or a key and its tenant")
    if key in callers:
        raise UsageError(f"auth.keys_file {path}: a key is there twice")
    callers[key] = Caller(TenantId(tenants[0])) if tenants else EVERYONE
