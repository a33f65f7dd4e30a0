"""Engine kinds by name. Engine modules are imported when their first engine is built, never before."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from headrace_server.engine.base import Engine, EngineSpec
from headrace_server.errors import UsageError

EngineFactory = Callable[[EngineSpec], Engine]

_KINDS: Mapping[str, tuple[str, str]] = {
    "vllm": ("headrace_server.engine.vllm_engine", "VllmEngine"),
    "upstream": ("headrace_server.engine.upstream_engine", "UpstreamEngine"),
    "synthetic": ("headrace_server.engine.synthetic_engine", "SyntheticEngine"),
}


def build_engine(spec: EngineSpec) -> Engine:
    """Build (not start) the engine that a spec asks for.

    Raises:
        UsageError: no such kind.
    """
    try:
        module, name = _KINDS[spec.kind]
    except KeyError:
        raise UsageError(f"unknown engine {spec.kind!r}; known: {', '.join(sorted(_KINDS))}") from None
    factory: EngineFactory = getattr(import_module(module), name)
    return factory(spec)


def preload_engine(kind: str, scratch: Path, *, fast_start: bool) -> None:
    """Import what the first engine of a kind will need, while its weights are still being looked for. Blocks for
    seconds; what fails here fails again, and is told, when an engine is built. The arguments: see `EngineSpec`."""
    preload = getattr(import_module(_KINDS[kind][0]), "preload", None)
    if preload is not None:
        preload(scratch, fast_start=fast_start)
