"""Run a module of this package as a child process that cannot outlive its parent.

Heavy imports (torch: 350 MB and 5 s) stay in the child. Its standard input is a pipe that nobody writes to: when the
parent dies, however it dies, the pipe closes and the child leaves (`exit_with_parent`). When the parent is interrupted
the child is killed before the exception goes on. What the child wrote to standard error becomes one line.
"""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from headrace_models.errors import PreparationFailed

POLL_SECONDS = 0.2
TAIL_BYTES = 16 << 10
MAX_LINE_CHARS = 400


def run_module(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    while_waiting: Callable[[], None],
) -> None:
    """Run `python -m module *arguments` to its end.

    `environment` is added to ours. `while_waiting` is called every POLL_SECONDS; what it raises ends the child and is
    passed on. When the child does not exit with 0: OSError if its disk was full, else PreparationFailed with the last
    line that it wrote.
    """
    # -P: a torch.py in the working directory must not be imported.
    command = [sys.executable, "-P", "-m", module, *arguments]
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=output,
            env={**os.environ, **environment},
            process_group=0,
        ) as process,
    ):
        try:
            _wait(process, while_waiting)
        finally:
            process.kill()
        if process.returncode != 0:
            raise _failure(_reason(module, process.returncode, output))


def exit_with_parent() -> None:
    """Called by the child first of all: from now on it dies with the process that started it."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()


def _wait(process: subprocess.Popen[bytes], while_waiting: Callable[[], None]) -> None:
    while True:
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            while_waiting()
        else:
            return


def _failure(reason: str) -> Exception:
    full = os.strerror(errno.ENOSPC)
    return OSError(errno.ENOSPC, full) if full in reason else PreparationFailed(reason)


def _reason(module: str, returncode: int, output: IO[bytes]) -> str:
    if returncode < 0:
        killer = signal.Signals(-returncode).name
        hint = " (out of memory?)" if -returncode == signal.SIGKILL else ""
        return f"{module} was ended by {killer}{hint}"
    output.seek(max(0, output.seek(0, os.SEEK_END) - TAIL_BYTES))
    return last_line(output.read()) or f"{module} exited with {returncode}"


def last_line(output: bytes) -> str:
    """The last line with text in what a program wrote, without control characters and at most MAX_LINE_CHARS long."""
    lines = output.decode(errors="replace").splitlines()
    printable = ("".join(char for char in line if char.isprintable()).strip() for line in reversed(lines))
    return next((line for line in printable if line), "")[:MAX_LINE_CHARS]
