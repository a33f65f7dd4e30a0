"""Fields of vLLM's that decide over other requests never come from a client."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from headrace_server.api import schemas

# Who is served first, whose work is reused, under which name a request may be aborted, where it is computed.
RESERVED = {
    "priority",
    "cache_salt",
    "request_id",
    "kv_transfer_params",
    "kv_hints",
    "vllm_xargs",
    "session_id",
    "stream_interval",
    "use_beam_search",
}


def wire_models() -> Iterator[type[BaseModel]]:
    for found in pkgutil.iter_modules(schemas.__path__):
        module = importlib.import_module(f"{schemas.__name__}.{found.name}")
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.__module__ == module.__name__:
                yield kind


@pytest.mark.parametrize("kind", list(wire_models()), ids=lambda kind: kind.__name__)
def test_no_wire_model_knows_a_reserved_field_or_keeps_unknown_ones(kind: type[BaseModel]) -> None:
    names = {name for field, info in kind.model_fields.items() for name in (field, info.alias, info.validation_alias)}
    assert not RESERVED & {str(name) for name in names}
    assert kind.model_config.get("extra") in ("ignore", "forbid")
