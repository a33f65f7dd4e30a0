"""The command about container images: `image lint`.

Exit codes: 0 nothing forbidden, 1 a limit is exceeded or the image cannot be read, 2 the command line cannot work.
"""

from typing import Annotated

import typer

from headrace_server.cli.model_commands import ConfigOption, JsonOption
from headrace_server.image.findings import Limits

image_app = typer.Typer(help="Look at container images.", no_args_is_help=True, rich_markup_mode=None)

_DEFAULTS = Limits()


def _bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r} is no number of bytes (1048576, 64MiB, 1GiB, …)") from error


def _size_option(help_text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(parser=_bytes, metavar="BYTES", help=help_text)
    return option


@image_app.command("lint")
def lint(  # noqa: PLR0913 - a command's options are its parameters
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help="An OCI layout (oci:DIR[:TAG] or a directory), an archive (oci-archive:FILE, docker-archive:FILE or a "
            "file), or registry/repository:tag.",
        ),
    ],
    platform: Annotated[
        str | None, typer.Option(metavar="OS/ARCH", help="Which image of several; else this machine's.")
    ] = None,
    max_layer_bytes: Annotated[int, _size_option("Error: a layer larger than this, compressed.")] = (
        _DEFAULTS.max_layer_bytes
    ),
    max_layers: Annotated[int, typer.Option(min=1, help="Error: more layers.")] = _DEFAULTS.max_layers,
    min_layers: Annotated[int, typer.Option(min=1, help="Warning: fewer layers.")] = _DEFAULTS.min_layers,
    max_layer_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Warning: a layer with more of the image's bytes.")
    ] = _DEFAULTS.max_layer_share,
    max_top_layer_bytes: Annotated[int, _size_option("Warning: a larger topmost layer, which each update moves.")] = (
        _DEFAULTS.max_top_layer_bytes
    ),
    min_image_bytes: Annotated[int, _size_option("Note: a smaller image needs neither kind of pulling.")] = (
        _DEFAULTS.min_image_bytes
    ),
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Report an image's layers, and whether parallel or lazy pulling can help; reads no layers, unpacks nothing."""
    from headrace_server.cli.image_view import lint_image

    limits = Limits(
        max_layer_bytes=max_layer_bytes,
        max_layer_share=max_layer_share,
        min_layers=min_layers,
        max_layers=max_layers,
        max_top_layer_bytes=max_top_layer_bytes,
        min_image_bytes=min_image_bytes,
    )
    raise typer.Exit(lint_image(image, platform, limits, config=config, as_json=json))


def register(app: typer.Typer) -> None:
    """Add these commands to the command."""
    app.add_typer(image_app, name="image")
