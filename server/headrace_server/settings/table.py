"""The schema as README's table, so that the table cannot lie: a test compares the two."""

import json
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from headrace_server.settings.schema import Settings


def markdown_table() -> str:
    """A Markdown table with a row per key: dotted name, default, meaning."""
    rows = [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in _rows(Settings, "")]
    return "\n".join(["| Key | Default | Meaning |", "| --- | --- | --- |", *rows])


def _rows(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        nested, mark = _nested_section(field.annotation)
        if nested is not None:
            yield from _rows(nested, f"{prefix}{name}{mark}.")
        else:
            yield prefix + name, _default(field.get_default()), field.description or ""


def _nested_section(annotation: object) -> tuple[type[BaseModel] | None, str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part, "[]"
    return None, ""


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "unset"
    return f"`{json.dumps(to_jsonable_python(value))}`"
