"""`headrace serve` as a child process, as a user runs it: ready line in, SIGINT out, nothing left behind."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY = re.compile(r"Headrace is ready at (http\S+)/v1 ")
START_SECONDS = 400
STOP_SECONDS = 60
GONE_SECONDS = 3


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running server; `base_url` has no path."""

    base_url: str
    pid: int


@contextmanager
def running_server(config: Path, log: Path, *, killed: bool = False) -> Iterator[ServerProcess]:
    """Start a server on a free port, wait for its ready line, end it with SIGINT and check that it ended well.

    `killed`: the test does such things to it that nothing is expected of its end; it is killed.
    """
    # A folder of its own, with a short name: sockets lie in it, and their paths are bounded.
    with (
        tempfile.TemporaryDirectory(prefix="hr-", ignore_cleanup_errors=True) as scratch,
        _spawn(config, log, scratch) as process,
    ):
        try:
            yield ServerProcess(_await_ready(process, log), process.pid)
            if killed:
                return
            if process.poll() is None:  # a test may have sent the signal itself
                process.send_signal(signal.SIGINT)
            assert process.wait(STOP_SECONDS) == 0, f"the server did not end well:\n{_tail(log)}"
            assert _is_gone(process.pid), "the server left processes behind"
            assert not list(Path(scratch).iterdir()), "the server left files behind"
        finally:
            _kill_group(process.pid)


def _spawn(config: Path, log: Path, scratch: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "headrace_server", "serve", "--config", str(config), "--port", "0"]
    with log.open("wb") as stderr:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": scratch},
        )


def _await_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if match := READY.search(line.decode()):
            return match.group(1)
    raise AssertionError(f"the server ended before it was ready:\n{_tail(log)}")


def _is_gone(group: int) -> bool:
    """Whether all of a process group has ended, soon after its leader: Python's resource tracker ends after everything
    that it keeps track of, and may have to unlink what vLLM's processes left when they were told to end."""
    until = time.monotonic() + GONE_SECONDS
    while group_members(group):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def group_members(group: int) -> list[int]:
    """Live processes of a process group; zombies have ended."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            members.append(int(stat.parent.name))
    return members


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
