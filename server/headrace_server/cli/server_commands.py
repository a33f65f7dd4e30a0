"""The commands about a running server: `ps`, `usage`, `load`, `unload`, `pin`, `drain`; what they do is imported when
they run.

Exit codes: 0 done, 1 there is no such server or it refused, 2 the command line or the configuration cannot work.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from headrace_server.cli.model_commands import ConfigOption, JsonOption

if TYPE_CHECKING:
    from pathlib import Path

    from headrace_server.cli.operator_client import Whereabouts

PortOption = Annotated[int | None, typer.Option(min=1, max=65535, help="The server's port.  [default: as configured]")]
UrlOption = Annotated[
    str | None, typer.Option(metavar="URL", help="Speak HTTP to this server, with the key in HEADRACE_API_KEY.")
]
KeyOption = Annotated[str | None, typer.Option(envvar="HEADRACE_API_KEY", hidden=True)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model's id or alias.")]


def ps(
    config: ConfigOption = None,
    port: PortOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Show models that are not in memory, too.")] = False,
    json: JsonOption = False,
) -> None:
    """Show which models of the running server are in memory, and what they take of it."""
    from headrace_server.cli.memory_view import print_residents

    print_residents(_whereabouts(config, port, url, key), everything=everything, as_json=json)


def usage(
    since: Annotated[int, typer.Option(metavar="DAYS", min=1, max=400, help="How many days, with today (UTC).")] = 30,
    config: ConfigOption = None,
    port: PortOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Show how many tokens each tenant of the running server has used, by model and day."""
    from headrace_server.cli.usage_view import print_usage

    print_usage(_whereabouts(config, port, url, key), since, as_json=json)


def load(
    model: ModelArgument,
    config: ConfigOption = None,
    port: PortOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Bring a model of the running server into memory; idle ones make room for it."""
    from headrace_server.cli.moving import load_model

    raise typer.Exit(load_model(model, _whereabouts(config, port, url, key)))


def unload(
    model: ModelArgument,
    config: ConfigOption = None,
    port: PortOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Take a model of the running server out of memory, once its requests have ended; later ones bring it back."""
    from headrace_server.cli.moving import unload_model

    raise typer.Exit(unload_model(model, _whereabouts(config, port, url, key)))


def pin(
    model: ModelArgument,
    config: ConfigOption = None,
    port: PortOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    off: Annotated[bool, typer.Option("--off", help="Let it leave again.")] = False,
) -> None:
    """Keep a model in the running server's memory until that ends, whoever else needs room."""
    from headrace_server.cli.moving import pin_model

    pin_model(model, _whereabouts(config, port, url, key), pinned=not off)


def drain(
    deadline: Annotated[
        float | None,
        typer.Option(min=0, max=86_400, help="Seconds for open requests.  [default: server.drain_seconds]"),
    ] = None,
    config: ConfigOption = None,
    port: PortOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Let the running server admit no more requests, wait for those that it has, and end."""
    from headrace_server.cli.draining import drain_server

    raise typer.Exit(drain_server(_whereabouts(config, port, url, key), deadline))


def register(app: typer.Typer) -> None:
    """Add these commands to the command."""
    for command in (ps, usage, load, unload, pin, drain):
        app.command()(command)


def _whereabouts(config: "Path | None", port: int | None, url: str | None, key: str | None) -> "Whereabouts":
    from headrace_server.cli.operator_client import Whereabouts

    return Whereabouts(config, port, url, key)
