"""`headrace keys …`: the store of keys on this machine, or the folder that `auth.keys_store` names."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import typer

from headrace_server.access import key_store
from headrace_server.cli.text_table import table_lines
from headrace_server.domain import Scope, TenantId
from headrace_server.errors import UsageError
from headrace_server.settings.access import AuthMode
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import Settings
from headrace_server.tenancy.key_records import KeyRecord
from headrace_server.tenancy.key_store import KeyStore, NewKey
from headrace_server.tenancy.keys import TENANT_NAME

_COLUMNS = ("KEY", "TENANT", "SCOPES", "STATE", "CREATED", "EXPIRES", "NAME")
_UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LIFETIME = re.compile(r"([1-9][0-9]{0,5})([mhdw])")
_MAX_NAME_CHARS = 100


@dataclass(frozen=True, slots=True)
class KeyWish:
    """A key as the command line asks for it."""

    tenant: str
    scopes: tuple[Scope, ...]
    name: str
    expires: str | None


def create_key(wish: KeyWish, config: Path | None) -> None:
    """Make a key and print it; what there is to know of it goes to standard error.

    Raises:
        UsageError: the wish or the store's folder cannot be used.
    """
    settings = load_settings(config=config)
    store = _store(settings)
    is_first = not store.exists
    key, record = store.create(_new_key(wish), int(time.time()))
    typer.echo(key)
    expires = "for ever" if record.expires is None else f"until {_minute(record.expires)}"
    typer.echo(f"for tenant {record.tenant}, good {expires}, for {_scopes(record)}; it is not shown again", err=True)
    for note in _notes(settings, record, is_first=is_first):
        typer.echo(f"headrace: {note}", err=True)


def _notes(settings: Settings, record: KeyRecord, *, is_first: bool) -> Iterator[str]:
    if settings.auth.mode is AuthMode.NONE:
        yield "auth.mode is none: no server asks for it"
    elif is_first and not settings.auth.names_keys:
        yield "from now on nobody is served without a key, also by a server that runs already"
    if settings.tenants and record.tenant not in {tenant.id for tenant in settings.tenants}:
        yield f"no tenant {record.tenant} is configured, so it has the default terms"


def _new_key(wish: KeyWish) -> NewKey:
    if not TENANT_NAME.fullmatch(wish.tenant):
        raise UsageError(f"--tenant {wish.tenant[:80]!r} is not a name: letters, digits and . _ : / @ -, 64 at most")
    if len(wish.name) > _MAX_NAME_CHARS or not wish.name.isprintable():
        raise UsageError(f"--name is for {_MAX_NAME_CHARS} printable characters at most")
    return NewKey(TenantId(wish.tenant), frozenset(wish.scopes), wish.name, lifetime_seconds(wish.expires))


def lifetime_seconds(text: str | None) -> int | None:
    """Seconds of `12h`, `30d` or `52w`; None of None.

    Raises:
        UsageError: it is something else.
    """
    if text is None:
        return None
    found = _LIFETIME.fullmatch(text)
    if found is None:
        raise UsageError(f"--expires {text[:40]!r} is not a time such as 12h, 30d or 52w")
    return int(found[1]) * _UNIT_SECONDS[found[2]]


def print_keys(config: Path | None, *, as_json: bool) -> None:
    """Every key that was ever made, without what opens."""
    now = time.time()
    records = _store(load_settings(config=config)).records()
    if as_json:
        typer.echo(json.dumps([_document(record, now) for record in records], indent=2))
        return
    for line in table_lines([_COLUMNS, *(_cells(record, now) for record in records)]):
        typer.echo(line)


def revoke_key(prefix: str, config: Path | None) -> None:
    """Let the key that begins so open nothing any more.

    Raises:
        UsageError: none begins so, or several do.
    """
    record = _store(load_settings(config=config)).revoke(prefix, int(time.time()))
    typer.echo(f"{record.caller.key} of tenant {record.tenant} is revoked")


def _store(settings: Settings) -> KeyStore:
    store = key_store(settings)
    if store is None:
        raise UsageError("auth.keys_store is false: keys that are made here do not count")
    return store


def state_of(record: KeyRecord, now: float) -> str:
    """`good`, `revoked` or `expired`."""
    if record.revoked is not None:
        return "revoked"
    return "good" if record.is_good(now) else "expired"


def _cells(record: KeyRecord, now: float) -> tuple[str, ...]:
    expires = "never" if record.expires is None else _minute(record.expires)
    cells = (
        record.caller.key,
        record.tenant,
        _scopes(record),
        state_of(record, now),
        _minute(record.created),
        expires,
        record.name,
    )
    return tuple(cell or "-" for cell in cells)


def _document(record: KeyRecord, now: float) -> dict[str, object]:
    return {
        "key": record.caller.key,
        "tenant": record.tenant,
        "scopes": sorted(record.scopes),
        "state": state_of(record, now),
        "name": record.name,
        "created": _stamp(record.created),
        "expires": _stamp(record.expires),
        "revoked": _stamp(record.revoked),
    }


def _scopes(record: KeyRecord) -> str:
    return ",".join(sorted(record.scopes))


def _minute(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def _stamp(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
