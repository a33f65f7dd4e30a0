"""The event loop's threads, counted, so that the end of the process need not wait for work that cannot be stopped.

Importing vLLM takes 10 s and more in a thread, and a thread cannot be cancelled. Both the event loop and the
interpreter wait for theirs when they end; after everything has been closed, there is nothing to wait for.
"""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn


class BusyThreads(ThreadPoolExecutor):
    """A thread pool that knows how many of its threads are at work."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="headrace")
        self._lock = threading.Lock()
        self._num_busy = 0

    @property
    def num_busy(self) -> int:
        """Threads at work now."""
        return self._num_busy

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """See `Executor.submit`."""
        return super().submit(self._counted, work, args, kwargs)

    def _counted(self, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._lock:
            self._num_busy += 1
        try:
            return work(*args, **kwargs)
        finally:
            with self._lock:
                self._num_busy -= 1


def leave(exit_code: int) -> NoReturn:
    """End the process without waiting for its threads; nothing that has to be closed may be open."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
