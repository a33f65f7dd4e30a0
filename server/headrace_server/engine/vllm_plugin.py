"""What vLLM loads in each of its processes, through the entry point `vllm.general_plugins`.

EngineCore and workers end with the process that started them: a server that is killed cannot stop them, and vLLM's
own processes otherwise live on and hold their memory.
"""

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess


def register() -> None:
    """Called once per process by vLLM; does something only in child processes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="end-with-parent", daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
