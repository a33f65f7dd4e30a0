"""The parent's side of the fetching process: start it, read its events, start it again when it dies, end it.

The child runs from the first moment of a server's life, so that its sockets and hashing share neither the event loop
nor the interpreter lock with anything, and a kill of it loses at most one chunk per connection.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from headrace_models.child_process import last_line
from headrace_models.fetch.events import Completed, Failed, FetchEvent, Noted, from_json
from headrace_models.fetch.request import FetchRequest

MAX_STARTS = 5
TAIL_BYTES = 16 << 10


class FetchProcess:
    """One fetch in a child process. `start`, then read `events` to their end in one thread; `stop` from any."""

    def __init__(self, request: FetchRequest, *, environment: Mapping[str, str] | None = None) -> None:
        """`environment` is the child's; None: what this process has now."""
        self._request = request
        self._environment = dict(os.environ if environment is None else environment)
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._is_stopped = False

    @property
    def pid(self) -> int | None:
        """The child's process id while there is one."""
        child = self._child
        return None if child is None else child.process.pid

    def start(self) -> None:
        """Start the child; raises OSError."""
        with self._lock:
            if not self._is_stopped:
                self._child = _spawn(self._request, self._environment)

    def events(self) -> Iterator[FetchEvent]:
        """What happens, as it happens; the last one is Completed or Failed, unless `stop` came first.

        Ends the child when it is left early.
        """
        reason = "it was never started"
        try:
            for attempt in range(MAX_STARTS):
                if attempt > 0:
                    yield Noted(f"the fetching process ended ({reason}); starting it again")
                    reason = self._start_again()
                for event in self._events_of_child():
                    yield event
                    if isinstance(event, Completed | Failed):
                        return
                reason = self._reap() or reason
                if self._is_stopped:
                    return
        finally:
            self._reap()
        yield Failed("FetchFailed", f"the fetching process ended {MAX_STARTS} times; the last time: {reason}")

    def stop(self) -> None:
        """End the child at once. Nothing that has arrived is lost."""
        with self._lock:
            self._is_stopped = True
            if self._child is not None:
                self._child.process.kill()

    def _start_again(self) -> str:
        """Why that cannot be done."""
        try:
            self.start()
        except OSError as error:
            return f"it cannot be started: {error.strerror or error}"
        return "it was never started"

    def _events_of_child(self) -> Iterator[FetchEvent]:
        child = self._child
        for line in child.output if child else ():
            try:
                yield from_json(line.decode())
            except (ValueError, KeyError, TypeError):
                return  # cut off in the middle

    def _reap(self) -> str | None:
        """End the child and close everything; why it ended, None where there is none."""
        with self._lock:
            child, self._child = self._child, None
        return child.end() if child else None


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    errors: IO[bytes]

    def end(self) -> str:
        with self.errors, self.process:
            self.process.kill()
            if self.process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # it died before it had read all of its request
                    self.process.stdin.close()
            code = self.process.wait()
            self.errors.seek(max(0, self.errors.seek(0, 2) - TAIL_BYTES))
            return last_line(self.errors.read()) or f"exit code {code}"


def _spawn(request: FetchRequest, environment: Mapping[str, str]) -> _Child:
    with contextlib.ExitStack() as on_failure:
        errors = on_failure.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(
            # -P: a module in the working directory must not be imported in place of a real one.
            [sys.executable, "-P", "-m", "headrace_models.fetch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            process_group=0,
        )
        on_failure.pop_all()  # `_Child.end` closes it
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("pipes were asked for")
    with contextlib.suppress(BrokenPipeError):  # dead already; reading its output says so
        process.stdin.write((request.to_json() + "\n").encode())
        process.stdin.flush()
    return _Child(process, process.stdout, errors)
