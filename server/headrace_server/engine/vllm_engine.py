"""vLLM in this process: one `AsyncLLM` (which runs its EngineCore and workers as child processes) per engine.

Importing vLLM takes many seconds, so nothing here is imported before an engine of this kind is built, and the import
and the engine's construction run in a thread while the event loop goes on answering probes. vLLM's own server is not
used: it ends the process when an engine dies and installs signal handlers.
"""

import asyncio
import ctypes
import gc
import logging
import multiprocessing
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from headrace_server.domain import EngineReply, EngineRequest, EngineStats, Operation, Seat
from headrace_server.engine.base import EngineInfo, EngineSpec
from headrace_server.engine.vllm_arguments import command_line
from headrace_server.engine.vllm_load_report import report_path, take_report
from headrace_server.errors import EngineDown, EngineFault

if TYPE_CHECKING:
    from starlette.datastructures import State
    from vllm.v1.engine.async_llm import AsyncLLM

    from headrace_server.engine.vllm_generation import VllmGeneration
    from headrace_server.engine.vllm_serving import VllmServing
    from headrace_server.engine.vllm_stats import StepCounters

logger = logging.getLogger(__name__)

_OPERATOR_DECIDES_ON_DYNAMO = "TORCHDYNAMO_DISABLE" in os.environ

T = TypeVar("T")

_POLL_SECONDS = 0.2

# Spoken to vLLM and the libraries under it; set where the operator has not said otherwise.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings tell of kernels that a CPU does not have
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "HF_HUB_OFFLINE": "1",  # engines load from a directory; whatever is missing there is an error, not a download
    "TOKENIZERS_PARALLELISM": "false",
    # What would only tell an operator of things that nobody here can change.
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning",
}


class VllmEngine:
    """`Engine` on vLLM; see `base.Engine` for the contract."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._llm: AsyncLLM | None = None
        self._generation: VllmGeneration | None = None
        self._serving: VllmServing | None = None
        self._counters: StepCounters | None = None
        self._building: asyncio.Future[Namespace] | None = None
        self._closing = False
        self._children_before = {child.pid for child in multiprocessing.active_children()}

    async def start(self) -> EngineInfo:
        try:
            self._building = asyncio.ensure_future(asyncio.to_thread(self._build))
            args = await asyncio.shield(self._building)  # a thread cannot be cancelled; `close` sees to it
            state = await self._open_serving(args)
        except (Exception, SystemExit) as error:  # vLLM's parser exits; its builders raise anything
            logger.exception("engine_start_failed", extra={"model": self._spec.model})
            raise EngineFault(f"the engine did not start: {self._reason(error)}") from error
        return self._info(state)

    def _reason(self, error: BaseException) -> str:
        """What the loader has left word of; of a worker's failure vLLM itself says only that there was one."""
        report = report_path(self._spec)
        return (report and take_report(report)) or _first_line(error)

    def _build(self) -> Namespace:
        """Import vLLM and start its processes. Runs in a thread, imports all that the loop will need."""
        preload(self._spec.scratch)
        from vllm import envs

        envs.disable_envs_cache()  # of an engine before this one
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.async_llm import AsyncLLM

        from headrace_server.engine.vllm_stats import StepCounters, step_logger

        line = command_line(self._spec, cpu=current_platform.is_cpu())
        args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args(line)
        if current_platform.is_cpu() and not _OPERATOR_DECIDES_ON_DYNAMO:
            # Eager does not stop vLLM from compiling its log probabilities: 16 s for the first request with any.
            os.environ["TORCHDYNAMO_DISABLE"] = "1" if args.enforce_eager else "0"
        engine_args = AsyncEngineArgs.from_cli_args(args)
        engine_args.disable_log_stats = True
        if self._closing:
            raise EngineFault("closed while it was starting")
        self._counters = StepCounters()
        self._llm = AsyncLLM.from_engine_args(
            engine_args,
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=[step_logger(self._counters)],
        )
        self._llm.log_stats = False  # of every token; those of every step go on
        envs.enable_envs_cache()  # as vLLM's own processes do; some are read for every token
        return args

    async def _open_serving(self, args: Namespace) -> "State":
        from starlette.datastructures import State
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state

        from headrace_server.engine.vllm_errors import explanation
        from headrace_server.engine.vllm_gated_client import GatedEngineClient
        from headrace_server.engine.vllm_generation import VllmGeneration
        from headrace_server.engine.vllm_renderer import OneVisitRenderer
        from headrace_server.engine.vllm_serving import VllmServing

        llm = self._require(self._llm)
        await llm.reset_mm_cache()
        state = State()
        counters = self._require(self._counters)
        await init_app_state(GatedEngineClient(llm, counters), state, args, await llm.get_supported_tasks())
        state.online_renderer.renderer = OneVisitRenderer(state.online_renderer.renderer)
        explain = explanation(lambda: llm.errored)
        self._generation = VllmGeneration(llm, state, counters, explain)
        self._serving = VllmServing(state, explain)
        await asyncio.to_thread(_settle_memory)
        return state

    def _info(self, state: "State") -> EngineInfo:
        operations = self._require(self._generation).operations() | self._require(self._serving).operations()
        return EngineInfo(operations, state.vllm_config.model_config.max_model_len)

    async def submit(self, request: EngineRequest, seat: Seat) -> EngineReply:
        """See `Engine.submit`. Chat and text completions take the short way, past vLLM's serving objects."""
        await self.check()
        if request.operation in (Operation.CHAT, Operation.COMPLETION):
            return await self._require(self._generation).open(request, seat)
        return await self._require(self._serving).submit(request, seat)

    def stats(self) -> EngineStats:
        return self._counters.snapshot() if self._counters else EngineStats()

    async def check(self) -> None:
        if self._require(self._llm).errored:
            raise EngineDown("the engine of this model has stopped")

    async def close(self) -> None:
        self._closing = True
        await self._end_building()
        llm, self._llm, self._generation, self._serving = self._llm, None, None, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)
            # vLLM's client shuts down again when it is collected, which fails once the interpreter is going away.
            del llm
            gc.unfreeze()
            gc.collect()

    async def _end_building(self) -> None:
        """Let a start that is under way fail soon: without its processes it cannot go on."""
        building = self._building
        while building is not None and not building.done():
            for child in multiprocessing.active_children():
                if child.pid not in self._children_before:
                    child.terminate()
            await asyncio.wait({building}, timeout=_POLL_SECONDS)

    @staticmethod
    def _require(part: T | None) -> T:
        if part is None:
            raise EngineDown("the engine of this model is not running")
        return part


def preload(scratch: Path | None) -> None:
    """Import all of vLLM that an engine and the loop will need, in a thread; a second call waits for the first and
    costs nothing. `scratch`: see `EngineSpec`."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "vllm" not in sys.modules:
        logger.info("vllm_import")
    _use_scratch(scratch)
    import vllm.engine.arg_utils
    import vllm.entrypoints.launchers.api_server.app_state
    import vllm.entrypoints.launchers.cli_args
    import vllm.v1.engine.async_llm  # noqa: F401

    import headrace_server.engine.vllm_generation
    import headrace_server.engine.vllm_serving  # noqa: F401


def _settle_memory() -> None:
    """Give back what the start has left over, and keep what is here from being looked through again: a full collection
    walks a million objects, 0.3 s in which no token is sent."""
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def _use_scratch(folder: Path | None) -> None:
    """vLLM and torch leave sockets, a rendezvous file and an empty cache in the temporary folder; give them one that
    somebody removes. Before their import, and one for the process, because they remember it.
    """
    if folder is None:
        return
    os.environ["VLLM_RPC_BASE_PATH"] = os.environ["TMPDIR"] = str(folder)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    from vllm import envs

    Path(envs.VLLM_RPC_BASE_PATH).mkdir(parents=True, exist_ok=True)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
