"""The only reader of the configuration file and of variables: flags over environment over file.

A `HEADRACE_` variable with a double underscore is a key (`HEADRACE_SERVER__PORT` is `server.port`) and an unknown one
refuses to start. Without a double underscore only `HEADRACE_CONFIG` is ours: Kubernetes injects names such as
`HEADRACE_PORT` for a Service called headrace. Values are read as YAML, so numbers, booleans and lists work.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from headrace_server.errors import UsageError
from headrace_server.settings.bindings import with_bindings
from headrace_server.settings.schema import Settings

PREFIX = "HEADRACE_"
_MAX_FILE_BYTES = 1024**2

Document = dict[str, Any]


def load_settings(
    *,
    config: Path | None = None,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read, merge and check the configuration.

    Args:
        config: file named on the command line; else `HEADRACE_CONFIG`; else `headrace.yaml` here if there is one.
        flags: values from the command line by dotted key, `{"server.port": 8001}`.
        environ: the environment; `os.environ` unless told otherwise.

    Raises:
        UsageError: unreadable file, unknown key or variable, bad value, a binding without its variables; one line that
            names it.
    """
    environ = os.environ if environ is None else environ
    document = _read_file(_config_path(config, environ))
    for dotted, value in (*_from_environment(environ), *(flags or {}).items()):
        _set(document, dotted.split("."), value)
    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        raise UsageError(_explain(error)) from error
    return with_bindings(settings, environ)


def _config_path(named: Path | None, environ: Mapping[str, str]) -> Path | None:
    if named is not None:
        return named
    if "HEADRACE_CONFIG" in environ:
        return Path(environ["HEADRACE_CONFIG"])
    default = Path("headrace.yaml")
    return default if default.exists() else None


def _read_file(path: Path | None) -> Document:
    if path is None:
        return {}
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(f"configuration {path}: larger than {_MAX_FILE_BYTES} bytes")
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"configuration {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"configuration {path}: not YAML{_yaml_place(error)}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"configuration {path}: expected keys and values at the top")
    return document


def _yaml_place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    known = set(scalar_keys(Settings))
    for name in sorted(environ):
        if not name.startswith(PREFIX) or "__" not in name:
            continue
        dotted = name.removeprefix(PREFIX).lower().replace("__", ".")
        if dotted not in known:
            raise UsageError(f"unknown variable {name}: there is no key {dotted!r} that a variable can set")
        yield dotted, _yaml_value(name, environ[name])


def _yaml_value(name: str, text: str) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{name}: the value is not readable") from error


def scalar_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys that are not lists of sections: what a variable or a flag can set."""
    for name, field in section.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            yield from scalar_keys(nested, f"{prefix}{name}.")
        elif not any(isinstance(part, type) and issubclass(part, BaseModel) for part in get_args(nested)):
            yield prefix + name


def _set(document: Document, path: list[str], value: object) -> None:
    for name in path[:-1]:
        inner = document.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{name}: expected keys and values")
        document = inner
    document[path[-1]] = value


def _explain(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"configuration: unknown key {key!r}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"configuration: {key}: {message}" if key else f"configuration: {message}"
