"""Continues stopped processes when this program has been killed before it could do so itself.

A shell in a session of its own reads the ids of the processes that are stopped now, a line each time they change. When
this program has ended, however it did, the shell's input ends, and it continues the processes of the last line. Only
someone who kills both leaves processes stopped.
"""

import subprocess
from collections.abc import Iterable
from contextlib import suppress

from headrace_server.bench.process_table import ProcessId

_SCRIPT = """
trap '' HUP INT TERM
stopped=
while read -r line; do stopped=$line; done
[ -z "$stopped" ] || kill -CONT $stopped
"""


class Guardian:
    """Use as a context: leaving it ends the shell, which continues whatever is still on its list."""

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> "Guardian":
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.communicate()

    def watch(self, stopped: Iterable[ProcessId]) -> None:
        """From now on these are the stopped ones. Call it before they are stopped."""
        if self._shell.stdin is not None:
            with suppress(BrokenPipeError):  # someone killed the shell: the rest goes on unguarded
                self._shell.stdin.write(" ".join(map(str, stopped)).encode() + b"\n")
                self._shell.stdin.flush()
