"""The process from which engines are forked, without vLLM in it: `vllm_forkserver.main` with nothing imported.

`python -m tests.fakes.light_fork_server LISTENER ALIVE READY`, as `ForkServer` runs it.
"""

import gc
import os
import sys
import tempfile
import time

from headrace_server.engine.vllm_forkserver import main

PROBLEM = "HEADRACE_TEST_PROBLEM"
IMPORT_SECONDS = "HEADRACE_TEST_IMPORT_SECONDS"


def prepared() -> str:
    """What importing would have done: taken its time, and left things behind."""
    gc.disable()
    time.sleep(float(os.environ.get(IMPORT_SECONDS, "0")))
    tempfile.gettempdir()
    return os.environ.get(PROBLEM, "")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]), unfitness=prepared)
