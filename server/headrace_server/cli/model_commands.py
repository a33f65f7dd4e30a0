"""The commands about models on disk: `pull`, `push`, `ls`, `rm`, `verify` and `index show`; what they do is imported
when they run.

Exit codes: 0 done, 1 something failed or was found wrong, 2 the command line or the configuration cannot work.
"""

from pathlib import Path
from typing import Annotated

import typer

from headrace_models.push.formats import ArtifactFormat
from headrace_models.trust import Trust

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file; else HEADRACE_CONFIG, else ./headrace.yaml."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Names = Annotated[
    list[str], typer.Argument(metavar="REF|KEY...", help="A configured id or alias, a reference, a key or its start.")
]

index_app = typer.Typer(
    help="Look at seek indexes: which tensor is where, in which order.", no_args_is_help=True, rich_markup_mode=None
)


def pull(  # noqa: PLR0913 - a command's options are its parameters
    references: Annotated[
        list[str], typer.Argument(metavar="REF...", help="Model references, or ids of configured models.")
    ],
    config: ConfigOption = None,
    max_connections: Annotated[int | None, typer.Option(min=1, help="Most connections at once.")] = None,
    bytes_per_second: Annotated[int | None, typer.Option(min=1, help="Most bytes to take in a second.")] = None,
    require_trust: Annotated[
        Trust | None, typer.Option(help="Refuse weights that cannot be checked so far.  [default: none]")
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Never evict these models.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each model.")] = False,
) -> None:
    """Bring models into the cache, one after the other; what is there already is not fetched again."""
    from headrace_server.cli.pulling import PullOptions, pull_models

    options = PullOptions(max_connections, bytes_per_second, require_trust, pin=pin, as_json=json)
    raise typer.Exit(pull_models(references, config, options))


def push(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|MODEL", help="A model directory or GGUF file, a configured id, a pulled reference or its key."
        ),
    ],
    destination: Annotated[str, typer.Argument(metavar="oci://…", help="Registry, repository and tag.")],
    config: ConfigOption = None,
    form: Annotated[
        ArtifactFormat, typer.Option("--format", help="Whose media types the artifact has.")
    ] = ArtifactFormat.MODELPACK,
    max_connections: Annotated[int | None, typer.Option(min=1, help="Most connections at once.")] = None,
    json: JsonOption = False,
) -> None:
    """Write a model into a registry, with the seek index and digests by which the next node checks every chunk."""
    from headrace_server.cli import pushing

    command = pushing.PushCommand(source, destination, form, max_connections, as_json=json)
    raise typer.Exit(pushing.push(command, config))


def list_models(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the models that are configured, embedded or in the cache; fetches nothing."""
    from headrace_server.cli.listing import print_models

    print_models(config, as_json=json)


def remove(names: Names, config: ConfigOption = None) -> None:
    """Remove models from the cache, in whole; a model in use stays. Directories of yours are never touched."""
    from headrace_server.cli.storage import remove_models

    raise typer.Exit(remove_models(names, config))


def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[REF|KEY]...", help="Which models; without any, all in the cache.")
    ] = None,
    config: ConfigOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Only say what is wrong, do not drop it.")] = False,
) -> None:
    """Read every byte in the cache and check it; what is wrong is dropped, so that the next pull brings it again."""
    from headrace_server.cli.storage import verify_models

    raise typer.Exit(verify_models(names or [], config, repair=not keep))


@index_app.command("show")
def index_show(
    name: Annotated[
        str, typer.Argument(metavar="REF|KEY", help="A configured id or alias, a reference, a key or its start.")
    ],
    config: ConfigOption = None,
    json: JsonOption = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="Show every tensor.")] = False,
) -> None:
    """Show a model's groups of tensors in the order of their use; of one that is not here, only headers are read."""
    from headrace_server.cli.index_view import show_index

    show_index(name, config, as_json=json, tensors=tensors)


def register(app: typer.Typer) -> None:
    """Add these commands to the command."""
    app.command()(pull)
    app.command()(push)
    app.command("ls")(list_models)
    app.command("rm")(remove)
    app.command()(verify)
    app.add_typer(index_app, name="index")
