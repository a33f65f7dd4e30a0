"""What vLLM loads in each of its processes, through the entry point `vllm.general_plugins`.

The loader of models in our store, registered under its load format. And an end: EngineCore and workers end with the
process that started them, for a server that is killed cannot stop them, and vLLM's own processes otherwise live on and
hold their memory.
"""

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess


def register() -> None:
    """Called once per process by vLLM, after the modules that the loader imports; the thread is for children only."""
    import headrace_server.engine.vllm_loader  # noqa: F401 - registers itself

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="end-with-parent", daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
