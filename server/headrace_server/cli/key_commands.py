"""The commands about API keys: `keys create`, `keys ls`, `keys revoke`; what they do is imported when they run.

They work on the store on disk, so a server need not run; one that does takes note within a second.
"""

from typing import Annotated

import typer

from headrace_server.cli.model_commands import ConfigOption, JsonOption
from headrace_server.domain import Scope

keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)


@keys_app.command("create")
def create(
    tenant: Annotated[str, typer.Option(help="For whom it is: all keys of a tenant share its part.")] = "default",
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it may do; may be repeated.  [default: inference]")
    ] = None,
    name: Annotated[str, typer.Option(help="What you call it, for the list.")] = "",
    expires: Annotated[str | None, typer.Option(metavar="TIME", help="After how long: `12h`, `30d`, `52w`.")] = None,
    config: ConfigOption = None,
) -> None:
    """Make a key and print it, this once: it is not kept. Servers with keys answer nobody without one."""
    from headrace_server.cli.keys import KeyWish, create_key

    create_key(KeyWish(tenant, tuple(scope or (Scope.INFERENCE,)), name, expires), config)


@keys_app.command("ls")
def list_keys(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List keys, revoked and expired ones too: whose they are and what for, never the keys."""
    from headrace_server.cli.keys import print_keys

    print_keys(config, as_json=json)


@keys_app.command("revoke")
def revoke(
    prefix: Annotated[str, typer.Argument(metavar="KEY", help="The beginning of the key, as `keys ls` shows it.")],
    config: ConfigOption = None,
) -> None:
    """Let a key open nothing any more."""
    from headrace_server.cli.keys import revoke_key

    revoke_key(prefix, config)


def register(app: typer.Typer) -> None:
    """Add these commands to the command."""
    app.add_typer(keys_app, name="keys")
