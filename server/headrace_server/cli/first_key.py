"""`headrace serve --make-key`: a server that others can reach, and that nobody has given keys, makes the first one.

Containers start so. A key is shown when it is made and never again, since only its digest is kept: a later start finds
that there are keys, makes none, and says how to get another.
"""

import time
from dataclasses import dataclass

import typer

from headrace_server.access import key_store
from headrace_server.domain import TenantId
from headrace_server.settings.access import AuthMode
from headrace_server.settings.schema import Settings
from headrace_server.tenancy.key_store import NewKey

NAME = "made at the first start"
TENANT = TenantId("default")


@dataclass(frozen=True, slots=True)
class KeyNotice:
    """What the ready line says about keys. `key`: the one that was just made; None: there are some already."""

    key: str | None


def make_first_key(settings: Settings) -> KeyNotice | None:
    """Make and print a key where none was ever made; None where the configuration itself says who may call.

    It is printed at once, because a start that fails later would take it along.

    Raises:
        UsageError: the state directory cannot be written to, or what is there is damaged.
    """
    auth = settings.auth
    if auth.mode is AuthMode.NONE or auth.names_keys or auth.keys_store is not True:
        return None
    store = key_store(settings)
    if store is None or store.exists:
        return KeyNotice(None)
    key, _ = store.create(NewKey(TENANT, name=NAME), int(time.time()))
    typer.echo(f"Headrace made its first API key, which is not shown again after this start: {key}")
    return KeyNotice(key)
