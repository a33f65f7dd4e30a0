"""`headrace serve` as a child process, as a user runs it: ready line in, SIGINT out, nothing left behind: no process,
no file, no socket, no shared memory."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

READY = re.compile(r"Headrace is ready at (http\S+)/v1 ")
START_SECONDS = 400
STOP_SECONDS = 60
GONE_SECONDS = 3
KEPT = {"keys.json", "pepper", "usage.json"}  # what a server's state directory is for


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running server; `base_url` has no path, `state_dir` is where its control socket lies, `scratch` its temporary
    folder. `shared_memory` is what its processes were seen to have made; it has to be gone in the end."""

    base_url: str
    pid: int
    state_dir: Path
    scratch: Path
    shared_memory: set[Path] = field(default_factory=set)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.base_url.rpartition(":")[2])

    def called(self, title: str) -> list[int]:
        """Its live processes that call themselves so, as `VLLM::EngineCore`."""
        return [pid for pid in group_members(self.pid) if _read(pid, "cmdline").startswith(title)]

    @property
    def num_zombies(self) -> int:
        """Processes of its that have ended, and that their parents have not asked about."""
        return sum(pgrp == self.pid and state == "Z" for _, state, pgrp in _processes())

    def until_called(self, title: str, *, number: int = 1, seconds: float = 60.0) -> None:
        """Wait until so many of its processes call themselves so. Blocks."""
        deadline = time.monotonic() + seconds
        while len(found := self.called(title)) != number:
            assert time.monotonic() < deadline, f"after {seconds:g} s there are {len(found)} processes called {title}"
            time.sleep(0.01)

    def kill(self, title: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to its only process that calls itself so; its id."""
        (pid,) = self.called(title)
        self.remember_shared_memory()
        os.kill(pid, number)
        return pid

    def remember_shared_memory(self) -> None:
        """Add what its processes have now to what has to be gone in the end."""
        self.shared_memory.update(path for pid in group_members(self.pid) for path in _shared_memory(pid))

    def has_ended(self, seconds: float) -> bool:
        """Whether it ends within so many seconds. To be asked before its context is left: its parent has not asked."""
        deadline = time.monotonic() + seconds
        while _state(self.pid) not in ("Z", ""):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


@contextmanager
def running_server(config: Path, log: Path, *, killed: bool = False) -> Iterator[ServerProcess]:
    """Start a server on a free port, wait for its ready line, end it with SIGINT and check that it ended well.

    `killed`: the test does such things to it that nothing is expected of its end; it is killed.
    """
    # Folders of its own, with short names: sockets lie in them, and their paths are bounded.
    with (
        tempfile.TemporaryDirectory(prefix="hr-", ignore_cleanup_errors=True) as scratch,
        tempfile.TemporaryDirectory(prefix="hs-", ignore_cleanup_errors=True) as state,
        _spawn(config, log, scratch, state) as process,
    ):
        try:
            server = ServerProcess(_await_ready(process, log), process.pid, Path(state), Path(scratch))
            yield server
            if killed:
                return
            server.remember_shared_memory()
            if process.poll() is None:  # a test may have sent the signal itself
                process.send_signal(signal.SIGINT)
            assert process.wait(STOP_SECONDS) == 0, f"the server did not end well:\n{_tail(log)}"
            assert is_gone(process.pid), "the server left processes behind"
            left = [*Path(scratch).iterdir(), *(path for path in Path(state).iterdir() if path.name not in KEPT)]
            assert not left, f"the server left files behind: {left}"
            kept = [path for path in server.shared_memory if path.exists()]
            assert not kept, f"the server left shared memory behind: {kept}"
        finally:
            _kill_group(process.pid)


def _spawn(config: Path, log: Path, scratch: str, state: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "headrace_server", "serve", "--config", str(config), "--port", "0"]
    # Not a pipe: engines write there, too, and would block once it is full.
    with log.open("wb") as stderr, _output(log).open("wb") as stdout:
        return subprocess.Popen(
            command,
            stdout=stdout,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": scratch, "HEADRACE_SERVER__STATE_DIR": state},
        )


def _output(log: Path) -> Path:
    """What the server and its engines write to standard output."""
    return log.with_name(f"{log.name}.out")


def _await_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None:
        if match := READY.search(_output(log).read_text(errors="replace")):
            return match.group(1)
        assert time.monotonic() < deadline, f"the server is not ready after {START_SECONDS} s:\n{_tail(log)}"
        time.sleep(0.02)
    raise AssertionError(f"the server ended before it was ready:\n{_tail(log)}")


def is_gone(group: int) -> bool:
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
    return [pid for pid, state, pgrp in _processes() if pgrp == group and state != "Z"]


def _processes() -> Iterator[tuple[int, str, int]]:
    """Id, state and group of all there are."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        yield int(stat.parent.name), state, int(pgrp)


def _state(pid: int) -> str:
    """R, S, T, Z, ...: see proc(5); empty where there is no such process."""
    return _read(pid, "stat").rpartition(")")[2].strip()[:1]


def _read(pid: int, name: str) -> str:
    """A file of a process in /proc; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _shared_memory(pid: int) -> Iterator[Path]:
    """What a process has mapped of shared memory and has a name: "7f0a-7f1b rw-s 0 00:1a 42 /dev/shm/psm_x"."""
    for line in _read(pid, "maps").splitlines():
        path = line[line.find("/dev/shm/") :] if "/dev/shm/" in line else ""
        if path and not path.endswith("(deleted)"):
            yield Path(path)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
