"""Engines with both ways to them: our `Inference`, and vLLM's own serving objects on the same `AsyncLLM`.

Two functions know the insides of the server and are all there is to adapt when those change: `inference_on` builds our
side, `async_llm_of` finds vLLM's engine in ours.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from headrace_models import parse_reference, prepare
from headrace_server.domain import ModelId, ModelState
from headrace_server.engine.base import Engine, EngineSpec
from headrace_server.engine.catalog_entry import CatalogEntry, Prepared
from headrace_server.engine.pool import EnginePool
from headrace_server.engine.registry import build_engine
from headrace_server.engine.vllm_arguments import command_line
from headrace_server.engine.vllm_start import unload
from headrace_server.serving.admission import OpenAdmission
from headrace_server.serving.drain import Drain
from headrace_server.serving.inference import Inference
from headrace_server.settings.schema import DEFAULT_MODEL, CacheSettings
from tests.engine.differential.reasoning_model import write_reasoning_model
from tests.fakes.server import fake_pool, running

# Without the prefix cache the second of two equal requests is computed exactly as the first one was.
_ARGUMENTS = {
    "tool_call_parser": "hermes",
    "tool_strict_level": "parameter",
    "enable_prefix_caching": False,
    "max_model_len": 1024,
    "kv_cache_memory_bytes": 64 * 1024**2,
}


class EngineKind(StrEnum):
    """The engines that cases run on; the value is the model's name."""

    CHAT = "smollm2"
    REASONING = "smollm2-thinking"


@dataclass(frozen=True, slots=True)
class Stage:
    """Both sides of running engines; `vllm` are the states that vLLM's `init_app_state` has filled."""

    inference: Inference
    vllm: Mapping[EngineKind, Any] = field(repr=False)


def inference_on(pool: EnginePool) -> Inference:
    """Our side."""
    return Inference(pool, {}, OpenAdmission(), Drain())


def async_llm_of(engine: Engine) -> Any:
    """The `AsyncLLM` inside our engine."""
    return engine._llm  # type: ignore[attr-defined]


@contextmanager
def engine_environment() -> Iterator[Path]:
    """What all engines of this process share, restored and removed at the end: environment variables, and the folder
    for sockets (vLLM remembers the first one; the name is short because the paths of sockets are bounded).
    """
    before = dict(os.environ)
    # Else the first log-probabilities wait 17 s for a compiler, whose cache goes with the folder.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        with TemporaryDirectory(prefix="hr-", ignore_cleanup_errors=True) as scratch:
            yield Path(scratch)
            unload(Path(scratch))
    finally:
        os.environ.clear()
        os.environ.update(before)


@asynccontextmanager
async def open_stage(kinds: Iterable[EngineKind], scratch: Path) -> AsyncIterator[Stage]:
    """Start engines one after the other, and end them with all of their processes, at once."""
    engines: dict[EngineKind, tuple[Engine, EngineSpec]] = {}

    def build(spec: EngineSpec) -> Engine:
        engine = build_engine(spec)
        engines[EngineKind(spec.model)] = engine, spec
        return engine

    async with running(fake_pool([_entry(kind, scratch) for kind in kinds], build)) as pool:
        await pool.until_settled()
        assert all(status.state is ModelState.READY for status in pool.statuses()), pool.statuses()
        states = {kind: await _vllm_state(async_llm_of(engine), spec) for kind, (engine, spec) in engines.items()}
        yield Stage(inference_on(pool), states)
        assert all(status.num_leases == 0 for status in pool.statuses()), "a request has kept its lease"


def _entry(kind: EngineKind, scratch: Path) -> CatalogEntry:
    async def prepared() -> Prepared:
        return Prepared(await asyncio.to_thread(_spec, kind, scratch), memory_bytes=1)  # so that one starts at a time

    return CatalogEntry(ModelId(kind), (), DEFAULT_MODEL, prepared)


def _spec(kind: EngineKind, scratch: Path) -> EngineSpec:
    prepared = prepare(parse_reference(DEFAULT_MODEL), CacheSettings().dir.expanduser())
    spec = EngineSpec(ModelId(kind), "vllm", prepared.directory, arguments=_ARGUMENTS, scratch=scratch)
    if kind is EngineKind.CHAT:
        return spec
    directory = write_reasoning_model(prepared.directory, scratch / "reasoning-model")
    return replace(spec, directory=directory, arguments={**_ARGUMENTS, "reasoning_parser": "deepseek_r1"})


async def _vllm_state(llm: Any, spec: EngineSpec) -> Any:
    """vLLM's own serving objects, as its server makes them from the same command line."""
    from starlette.datastructures import State
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser()).parse_args(command_line(spec, cpu=True))
    args.structured_outputs_config = llm.vllm_config.structured_outputs_config  # the engine has put its parser there
    state = State()
    await init_app_state(llm, state, args, await llm.get_supported_tasks())
    return state
