"""The `headrace` command. Thin: each command parses its arguments and calls one function, imported when it runs, so
that `headrace --help` stays fast.

Exit codes: 0 done, 1 failed, 2 the command, its configuration or its surroundings cannot work (one line says why).
"""

from typing import Annotated

import typer

from headrace_models.errors import ModelError
from headrace_server.cli import image_commands, key_commands, model_commands, server_commands
from headrace_server.cli.bench import bench
from headrace_server.cli.model_commands import ConfigOption, JsonOption
from headrace_server.cli.server_commands import KeyOption
from headrace_server.errors import HeadraceError, UsageError

EXIT_FAILED = 1
EXIT_USAGE = 2

app = typer.Typer(
    name="headrace",
    help="A local-to-cluster LLM inference server with an OpenAI-compatible API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
app.command()(bench)
model_commands.register(app)
server_commands.register(app)
key_commands.register(app)
image_commands.register(app)

ModelOption = Annotated[
    list[str] | None,
    typer.Option("--model", help="Model reference to serve, in place of the configured ones; may be repeated."),
]


@app.command()
def serve(
    config: ConfigOption = None,
    model: ModelOption = None,
    host: Annotated[str | None, typer.Option(help="Address to bind.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0 takes a free one.")] = None,
    make_key: Annotated[
        bool, typer.Option("--make-key", help="Where nobody has given out keys, make the first one and print it.")
    ] = False,
) -> None:
    """Start the server; without any configuration, a small embedded model on 127.0.0.1:8000."""
    from headrace_server.cli.serving import run_server

    flags = {"server.host": host, "server.port": port}
    given = {name: value for name, value in flags.items() if value is not None}
    raise typer.Exit(run_server(config, model or [], given, make_key=make_key))


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="A configured model's id, or a model reference.")],
    prompt: Annotated[str | None, typer.Argument(help="Ask this and leave; without it, chat.")] = None,
    config: ConfigOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 512,
    key: KeyOption = None,
) -> None:
    """Talk to a model in the terminal: on the running server if it has the model, else on an engine of its own."""
    from headrace_server.cli.chat import run_chat

    raise typer.Exit(run_chat(model, prompt, config=config, max_tokens=max_tokens, key=key))


@config_app.command("show")
def config_show(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print the configuration as it is in force: file, environment and defaults."""
    from headrace_server.cli.configuration import show

    show(config, as_json=json)


@config_app.command("schema")
def config_schema(
    table: Annotated[bool, typer.Option("--table", help="A Markdown table instead.")] = False,
) -> None:
    """Print the JSON Schema of the configuration."""
    from headrace_server.cli.configuration import print_schema

    print_schema(as_table=table)


@config_app.command("check")
def config_check(config: ConfigOption = None) -> None:
    """Check the configuration without starting anything."""
    from headrace_server.cli.configuration import check

    check(config)


@app.command()
def version(json: JsonOption = False) -> None:
    """Print the versions of Headrace, Python and vLLM."""
    from headrace_server.cli.listing import print_version

    print_version(as_json=json)


def main() -> None:
    """Entry point: our own errors become one line and an exit code."""
    try:
        app()
    except UsageError as error:
        _fail(error, EXIT_USAGE)
    except (HeadraceError, ModelError) as error:
        _fail(error, EXIT_FAILED)


def _fail(error: HeadraceError | ModelError, code: int) -> None:
    typer.echo(f"headrace: {error}", err=True)
    raise SystemExit(code) from error
