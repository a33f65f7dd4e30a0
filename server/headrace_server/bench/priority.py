"""The measuring client's place among the processes of its machine.

It shares the machine with the servers that it measures, and what it measures must not be its own waiting. vLLM's engine
process spins (sched_yield) while it waits for its workers; on 2 cores the client was seen to get no processor time for
one to three seconds at a time, while the tokens of that time piled up in its sockets. It needs a few per cent of a
core, so it asks for real-time priority, which root and CAP_SYS_NICE may have. Processes that it starts get none of it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def priority() -> Iterator[bool]:
    """Within the block, this process goes before all ordinary ones, where that is allowed; whether it does."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (AttributeError, OSError):  # not on Linux; not permitted
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def has_priority() -> bool:
    """Whether this process goes before all ordinary ones now."""
    return hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR
