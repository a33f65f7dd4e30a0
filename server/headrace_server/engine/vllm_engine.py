"""vLLM in this process: one `AsyncLLM` (which runs its EngineCore and workers as child processes) per engine.

Importing vLLM takes many seconds, so nothing of it is imported before an engine of this kind is built, and the import
and the engine's construction (`vllm_start`) run in a thread while the event loop goes on answering probes. vLLM's own
server is not used: it ends the process when an engine dies and installs signal handlers. Processes are killed when
their engine is closed, never asked to end: nothing in them is worth a wait, and one that hangs would not hear.
"""

import asyncio
import ctypes
import gc
import logging
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from headrace_server.domain import EngineReply, EngineRequest, EngineStats, Operation, Seat
from headrace_server.engine.base import EngineInfo, EngineSpec
from headrace_server.engine.vllm_child import failure_path
from headrace_server.engine.vllm_load_report import report_path, take_report
from headrace_server.engine.vllm_memory import gpu_memory, machine_memory
from headrace_server.engine.vllm_plugin import HEARTBEAT
from headrace_server.engine.vllm_process_group import STOPPED, ProcessGroup
from headrace_server.engine.vllm_processes import Seam, StartClosed
from headrace_server.engine.vllm_start import Built, build, forks_for, preload
from headrace_server.errors import EngineDied, EngineFault

if TYPE_CHECKING:
    from headrace_server.engine.vllm_generation import VllmGeneration
    from headrace_server.engine.vllm_llm import EngineLlm
    from headrace_server.engine.vllm_serving import VllmServing
    from headrace_server.engine.vllm_stats import StepCounters

__all__ = ["VllmEngine", "preload"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class VllmEngine:
    """`Engine` on vLLM; see `base.Engine` for the contract."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._llm: EngineLlm | None = None
        self._generation: VllmGeneration | None = None
        self._serving: VllmServing | None = None
        self._counters: StepCounters | None = None
        self._processes: ProcessGroup | None = None
        self._seam: Seam | None = None
        self._closed = asyncio.Event()

    async def start(self) -> EngineInfo:
        """See `Engine.start`."""
        try:
            if self._closed.is_set():
                raise StartClosed
            self._processes = ProcessGroup(self._spec.scratch)
            self._seam = Seam(self._processes.folder, forks_for(self._spec))
            return await _unless(self._closed, self._start(self._seam))
        except (Exception, SystemExit) as error:  # vLLM's parser exits; its builders raise anything
            reason = "closed while it was starting" if self._closed.is_set() else self._reason(error)
            logger.exception("engine_start_failed", extra={"model": self._spec.model})
            raise EngineFault(f"the engine did not start: {reason}") from error

    async def _start(self, seam: Seam) -> EngineInfo:
        from headrace_server.engine.vllm_capacity import capacity_of

        # A thread of its own: it may wait for weights, and those that everybody shares are few.
        thread = ThreadPoolExecutor(1, thread_name_prefix="vllm-start")
        try:
            built = await asyncio.get_running_loop().run_in_executor(thread, build, self._spec, seam)
        finally:
            thread.shutdown(wait=False)
        self._llm = built.llm
        await self._open_serving(built)
        memory_bytes = await asyncio.to_thread(self._settle)
        operations = self._require(self._generation).operations() | self._require(self._serving).operations()
        config = built.llm.vllm_config
        return EngineInfo(operations, config.model_config.max_model_len, memory_bytes, capacity_of(config))

    async def _open_serving(self, built: Built) -> None:
        from starlette.datastructures import State
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state

        from headrace_server.engine.vllm_errors import explanation
        from headrace_server.engine.vllm_gated_client import GatedEngineClient
        from headrace_server.engine.vllm_generation import VllmGeneration
        from headrace_server.engine.vllm_meter import Meter
        from headrace_server.engine.vllm_renderer import OneVisitRenderer
        from headrace_server.engine.vllm_serving import VllmServing

        llm, counters = built.llm, built.counters
        await llm.reset_mm_cache()
        state = State()
        await init_app_state(GatedEngineClient(llm), state, built.args, await llm.get_supported_tasks())
        state.online_renderer.renderer = OneVisitRenderer(state.online_renderer.renderer)
        explain = explanation(self._is_gone)
        self._counters = counters
        Meter(llm.output_processor, counters)
        self._generation = VllmGeneration(llm, state, explain)
        self._serving = VllmServing(state, explain)

    def _settle(self) -> int | None:
        """Everything is up: watch it, measure it. Returns the bytes that it takes. In a thread."""
        from vllm.platforms import current_platform

        processes = self._require(self._processes).settle()
        _give_back_memory()
        return machine_memory(processes) if current_platform.is_cpu() else gpu_memory(processes)

    def _reason(self, error: BaseException) -> str:
        """What loader or processes have left word of: of their failures vLLM itself says only that there was one."""
        told = [report_path(self._spec)]
        if self._processes is not None:
            told.append(failure_path(self._processes.folder))
        found = [reason for path in told if path is not None and (reason := take_report(path))]
        return found[0] if found else _first_line(error)

    async def submit(self, request: EngineRequest, seat: Seat) -> EngineReply:
        """See `Engine.submit`. Chat and text completions take the short way, past vLLM's serving objects."""
        if self._llm is None or self._llm.errored:  # `check` costs a tenth of a millisecond
            raise EngineDied(STOPPED)
        if request.operation in (Operation.CHAT, Operation.COMPLETION):
            return await self._require(self._generation).open(request, seat)
        return await self._require(self._serving).submit(request, seat)

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return self._counters.snapshot() if self._counters else EngineStats()

    async def check(self) -> None:
        """See `Engine.check`."""
        if self._is_gone():
            raise EngineDied(STOPPED)

    def _is_gone(self) -> bool:
        """vLLM learns of a worker's death from EngineCore, which learns of it by itself; we see both."""
        if self._llm is None or self._processes is None:
            return True
        gone: bool = self._llm.errored
        return gone or self._processes.is_broken()

    async def heartbeat(self) -> None:
        """See `Engine.heartbeat`."""
        await self.check()
        await _unless(self._closed, self._require(self._llm).collective_rpc(HEARTBEAT))

    async def close(self) -> None:
        """See `Engine.close`."""
        self._closed.set()
        llm, self._llm, self._generation, self._serving = self._llm, None, None, None
        if llm is not None:
            llm.give_up()
        if self._seam is not None:
            self._seam.close()
        if self._processes is not None:
            await asyncio.to_thread(self._processes.end)
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)
            await asyncio.to_thread(llm.release)
            del llm
            await asyncio.to_thread(gc.collect)  # its sockets; objects of the import are left out, see `preload`

    @staticmethod
    def _require(part: T | None) -> T:
        if part is None:
            raise EngineDied(STOPPED)
        return part


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to; EngineDied as soon as `event` is set. `work` is over in any case when this is."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise EngineDied(STOPPED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _give_back_memory() -> None:
    """What the start has left over; glibc's alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _first_line(error: BaseException) -> str:
    """Of pydantic's report, what it found first."""
    said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    lines = said.strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
