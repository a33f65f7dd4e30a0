"""What vLLM loads in each of its processes, through the entry point `vllm.general_plugins`.

The loader of models in our store, registered under its load format. In processes of an engine of ours, how they start
others, that their queues fit into shared memory, that heartbeats are cheap, and that seeds do no harm. And an end:
EngineCore and workers end with the process that started them, for a server that is killed cannot stop them, and vLLM's
own processes otherwise live on and hold their memory.
"""

import multiprocessing
import os
import threading
import time
from multiprocessing.process import BaseProcess
from typing import Any

_MOMENT_SECONDS = 0.1

HEARTBEAT = "check_health"
"""The worker's method that a heartbeat calls; vLLM's own, which does nothing but answer."""


def register() -> None:
    """Called once per process by vLLM, after the modules that the loader imports; the thread is for children only."""
    import headrace_server.engine.vllm_loader  # noqa: F401 - registers itself
    from headrace_server.engine.vllm_processes import adopt
    from headrace_server.engine.vllm_shared_memory import fit_queues

    if adopt():
        fit_queues()
        _rest_after_heartbeats()
        _rewind_seeds()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="end-with-parent", daemon=True).start()


def _rest_after_heartbeats() -> None:
    """A worker asks for its next message without pause for 1 s after the last one, which keeps decoding fast: with
    0.05 s it was 11 % slower. After a heartbeat it is not to, or one every 2.5 s takes 40 % of a processor from an idle
    engine. It still asks for a moment: a worker that sleeps between two steps may miss that it is woken, for 5 s."""
    from vllm.v1.executor.multiproc_executor import WorkerProc

    execute = WorkerProc._execute_worker_rpc

    def execute_and_rest(worker: Any, request: Any) -> None:
        execute(worker, request)
        if request[0] == HEARTBEAT:
            waiting = worker.rpc_broadcast_mq._spin_condition
            waiting.last_read = time.monotonic() - waiting.busy_loop_s + _MOMENT_SECONDS

    WorkerProc._execute_worker_rpc = execute_and_rest


def _rewind_seeds() -> None:
    """Where a prompt is computed in several steps, vLLM turns the random numbers of a request with a seed back after
    each but the last, by an offset that generators on CPUs do not have: the engine ends. Before the first token that
    is the same as to begin again."""
    import torch
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return

    class RewindableGenerator(torch.Generator):
        def get_offset(self) -> int:
            return 0

        def set_offset(self, offset: int) -> None:
            self.manual_seed(self.initial_seed())

    torch.Generator = RewindableGenerator


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
