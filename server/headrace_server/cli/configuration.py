"""`headrace config …`: what is in force, what could be set, whether it is right."""

import json
from pathlib import Path

import typer
import yaml

from headrace_server.runtime import plan_runtime
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import Settings
from headrace_server.settings.table import markdown_table


def show(config: Path | None, *, as_json: bool) -> None:
    """Print the configuration in force; secrets are masked."""
    document = load_settings(config=config).model_dump(mode="json")
    typer.echo(json.dumps(document, indent=2) if as_json else yaml.safe_dump(document, sort_keys=False).rstrip())


def print_schema(*, as_table: bool) -> None:
    """Print the JSON Schema, or README's table."""
    typer.echo(markdown_table() if as_table else json.dumps(Settings.model_json_schema(), indent=2))


def check(config: Path | None) -> None:
    """Check everything that can be checked without starting; raises UsageError where something is wrong."""
    models = plan_runtime(load_settings(config=config)).models
    typer.echo(f"configuration is valid: {len(models)} model(s): {', '.join(model.id for model in models)}")
