"""The process from which engines are forked, without vLLM in it: `vllm_forkserver.main` with nothing imported.

`python -m tests.fakes.light_fork_server LISTENER ALIVE READY`, as `ForkServer` runs it.
"""

import os
import sys

from headrace_server.engine.vllm_forkserver import main

PROBLEM = "HEADRACE_TEST_PROBLEM"

if __name__ == "__main__":
    main(*map(int, sys.argv[1:]), unfitness=lambda: os.environ.get(PROBLEM, ""))
