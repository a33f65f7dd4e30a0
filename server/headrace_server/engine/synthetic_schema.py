"""A JSON value that satisfies a simple JSON Schema.

Knows const, enum, types, required properties, arrays with bounds, string lengths, number bounds, `$ref` within the
document, and the first branch of allOf, anyOf and oneOf. Does not know patterns, formats, not and the like: a value
for those may not validate. The work is bounded whatever the schema says.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from headrace_server.errors import InvalidRequest

JsonValue: TypeAlias = Any
Schema: TypeAlias = Mapping[str, Any]

_MAX_VALUES = 10_000
_MAX_DEPTH = 64
_MAX_STRING_CHARS = 10_000


def instance_of(schema: Schema, words: Iterator[str]) -> JsonValue:
    """A value for `schema` whose strings are `words`.

    Raises:
        InvalidRequest: the schema asks for too much, or refers to what is not there.
    """
    return _Instance(schema, words).value(schema, depth=0)


class _Instance:
    """Builds one value; counts what it has built."""

    def __init__(self, root: Schema, words: Iterator[str]) -> None:
        self._root = root
        self._words = words
        self._num_values = 0

    def value(self, schema: object, *, depth: int) -> JsonValue:
        self._num_values += 1
        if self._num_values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise InvalidRequest("the schema asks for a value that is too large", code="invalid_schema")
        if not isinstance(schema, Mapping):
            return next(self._words)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][0]
        branch = self._branch(schema)
        return self.value(branch, depth=depth + 1) if branch is not None else self._typed(schema, depth)

    def _branch(self, schema: Schema) -> object:
        """The schema that stands behind this one, or None if it stands for itself."""
        if "$ref" in schema:
            return self._resolve(str(schema["$ref"]))
        for word in ("anyOf", "oneOf"):
            if schema.get(word):
                return schema[word][0]
        if schema.get("allOf"):
            return self._merged(schema)
        return None

    def _merged(self, schema: Schema) -> Schema:
        merged = {name: value for name, value in schema.items() if name != "allOf"}
        for part in schema["allOf"]:
            part = self._resolve(str(part["$ref"])) if "$ref" in part else part
            for name, value in part.items():
                merged[name] = _both(merged.get(name), value)
        return merged

    def _resolve(self, reference: str) -> Any:
        found: Any = self._root
        for step in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
            try:
                found = found[step.replace("~1", "/").replace("~0", "~")]
            except (KeyError, TypeError):
                raise InvalidRequest("the schema has a $ref to nothing", code="invalid_schema") from None
        return found

    def _typed(self, schema: Schema, depth: int) -> JsonValue:
        match _type_of(schema):
            case "object":
                properties = schema.get("properties", {})
                names = schema.get("required", ())
                return {name: self.value(properties.get(name, True), depth=depth + 1) for name in names}
            case "array":
                return self._array(schema, depth)
            case "integer" | "number" as kind:
                return _number(schema, is_integer=kind == "integer")
            case "boolean":
                return True
            case "null":
                return None
            case _:
                return self._string(schema)

    def _array(self, schema: Schema, depth: int) -> list[JsonValue]:
        prefix = schema.get("prefixItems", [])
        num_items = max(schema.get("minItems", min(1, schema.get("maxItems", 1))), len(prefix))
        kinds = (prefix[i] if i < len(prefix) else schema.get("items", True) for i in range(num_items))
        return [self.value(kind, depth=depth + 1) for kind in kinds]

    def _string(self, schema: Schema) -> str:
        shortest = schema.get("minLength", 0)
        if shortest > _MAX_STRING_CHARS:
            raise InvalidRequest("the schema asks for a string that is too long", code="invalid_schema")
        text = next(self._words)
        while len(text) < shortest:
            text += " " + next(self._words)
        return text[: schema.get("maxLength", len(text))]


def _type_of(schema: Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list) and kind:
        kind = kind[0]
    if isinstance(kind, str):
        return kind
    return "object" if "properties" in schema or "required" in schema else "string"


def _number(schema: Schema, *, is_integer: bool) -> float:
    step = schema.get("multipleOf", 1)
    low = schema.get("minimum", schema.get("exclusiveMinimum", -step))
    high = schema.get("maximum", schema.get("exclusiveMaximum", step))
    if low < 0 < high:
        return 0
    if "minimum" in schema or "exclusiveMinimum" in schema:
        number = -(-low // step) * step
        return _whole(number + step if number == schema.get("exclusiveMinimum") else number, is_integer=is_integer)
    number = high // step * step
    return _whole(number - step if number == schema.get("exclusiveMaximum") else number, is_integer=is_integer)


def _whole(number: float, *, is_integer: bool) -> float:
    return int(number) if is_integer else number


def _both(one: Any, other: Any) -> Any:
    """Two values of the same keyword in one: objects and lists are joined, else the later one counts."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {**one, **other}
    if isinstance(one, list) and isinstance(other, list):
        return [*one, *other]
    return other
