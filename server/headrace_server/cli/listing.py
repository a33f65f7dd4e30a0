"""`headrace ls` and `headrace version`."""

import json as json_module
import platform
from pathlib import Path

import typer

from headrace_models import list_embedded
from headrace_server import __version__
from headrace_server.api.health import vllm_version
from headrace_server.catalog import model_settings
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import ModelSettings


def print_models(config: Path | None, *, as_json: bool) -> None:
    """Every model that this configuration or this installation offers."""
    settings = load_settings(config=config)
    cache_dir = settings.cache.dir.expanduser()
    rows = [_configured(model) for model in model_settings(settings)]
    named = {row["source"] for row in rows}
    for model in list_embedded(cache_dir):
        if str(model.reference) in named:
            next(row for row in rows if row["source"] == str(model.reference))["state"] = model.state.value
        else:
            rows.append({"id": "", "source": str(model.reference), "engine": "", "state": model.state.value})
    if as_json:
        typer.echo(json_module.dumps(rows, indent=2))
        return
    for row in [{"id": "ID", "source": "SOURCE", "engine": "ENGINE", "state": "STATE"}, *rows]:
        typer.echo(f"{row['id'] or '-':<28} {row['source']:<40} {row['engine'] or '-':<10} {row['state']}".rstrip())


def _configured(model: ModelSettings) -> dict[str, str]:
    source = model.source or model.upstream.url or model.engine.value
    return {"id": model.id, "source": source, "engine": model.engine.value, "state": "configured"}


def print_version(*, as_json: bool) -> None:
    """Versions of what matters."""
    versions = {"headrace": __version__, "python": platform.python_version(), "vllm": vllm_version()}
    if as_json:
        typer.echo(json_module.dumps(versions))
        return
    for name, version in versions.items():
        typer.echo(f"{name} {version or 'not installed'}")
