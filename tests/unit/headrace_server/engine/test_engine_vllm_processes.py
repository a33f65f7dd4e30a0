"""How an engine's processes start and end, with processes that have nothing of vLLM's in them."""

import gc
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context, parent_process, shared_memory
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from headrace_server.engine.vllm_forkserver import ForkServer, ForkServerUnusable
from headrace_server.engine.vllm_lives import Life, birth_mark, life_of
from headrace_server.engine.vllm_process_group import ProcessGroup
from headrace_server.engine.vllm_processes import EngineContext, Seam, StartClosed, warn_of_slow_start
from tests.fakes.light_fork_server import IMPORT_SECONDS, PROBLEM

MODULE = "tests.fakes.light_fork_server"
SECONDS = 20
VARIABLE = "HEADRACE_TEST_VARIABLE"
SHARED_BYTES = 4096


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a short name: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="hr-") as folder:
        yield Path(folder)


@pytest.fixture
def group(scratch: Path) -> Iterator[ProcessGroup]:
    group = ProcessGroup(scratch)
    yield group
    group.end()


@pytest.fixture
def forks(scratch: Path) -> Iterator[ForkServer]:
    server = ForkServer(scratch, MODULE)
    yield server
    server.stop()


@pytest.fixture(params=["afresh", "forked"])
def seam(request: pytest.FixtureRequest, group: ProcessGroup, forks: ForkServer) -> Seam:
    """Both ways to start a process."""
    if request.param == "afresh":
        return Seam(group.folder, lambda: None)
    forks.start(os.environ)
    return Seam(group.folder, forks.address)


def child(seam: Seam, target: Callable[[Connection], None]) -> tuple[BaseProcess, Connection]:
    """A process of the engine that runs `target`, and what it says."""
    context = EngineContext(seam)
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs,))
    process.start()
    theirs.close()
    return process, ours


def ended(process: BaseProcess) -> int | None:
    process.join(SECONDS)
    return process.exitcode


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def describe(pipe: Connection) -> None:
    parent = parent_process()
    pipe.send((os.environ.get(VARIABLE), parent and parent.pid, tempfile.gettempdir(), gc.isenabled()))
    sys.exit(3)


def stay(pipe: Connection) -> None:
    pipe.send("here")
    pipe.poll(SECONDS)


def share(pipe: Connection) -> None:
    memory = shared_memory.SharedMemory(create=True, size=SHARED_BYTES)
    pipe.send(memory.name)
    pipe.poll(SECONDS)
    os._exit(0)


def test_a_process_has_its_engines_variables_and_is_a_child_of_who_started_it(
    seam: Seam, group: ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    seam.variables = {VARIABLE: "of the engine", "TMPDIR": str(group.folder)}
    monkeypatch.setenv(VARIABLE, "of the server")
    process, said = child(seam, describe)
    assert said.recv() == ("of the engine", os.getpid(), str(group.folder), True)
    assert ended(process) == 3
    assert os.environ[VARIABLE] == "of the server"


def test_a_process_leaves_word_of_itself_and_no_signal_but_a_kill_ends_it(seam: Seam, group: ProcessGroup) -> None:
    process, said = child(seam, stay)
    assert said.recv() == "here"
    assert group.settle() == (process.pid,)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.pid or 0, number)
    assert not said.poll(0.05)
    assert not group.is_broken()
    process.terminate()
    assert ended(process) == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_end_of_a_group_ends_every_process_and_leaves_nothing(
    seam: Seam, group: ProcessGroup, number: signal.Signals
) -> None:
    process, said = child(seam, share)
    name = said.recv()
    group.settle()
    assert Path("/dev/shm", name).exists()
    os.kill(process.pid or 0, number)
    group.end()
    assert ended(process) == -signal.SIGKILL
    assert not Path("/dev/shm", name).exists()
    assert not group.folder.exists()


def test_a_process_that_was_gone_before_anybody_looked_leaves_nothing(seam: Seam, group: ProcessGroup) -> None:
    process, said = child(seam, share_and_synchronise)
    names = said.recv()
    os.kill(process.pid or 0, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    assert all(Path("/dev/shm", name).exists() for name in names)
    group.end()
    assert not any(Path("/dev/shm", name).exists() for name in names)


def share_and_synchronise(pipe: Connection) -> None:
    memory = shared_memory.SharedMemory(create=True, size=SHARED_BYTES)
    lock: Any = get_context("spawn").Lock()
    pipe.send((memory.name, "sem." + lock._semlock.name.removeprefix("/")))
    pipe.poll(SECONDS)


def test_a_process_that_its_parent_ends_leaves_no_shared_memory(seam: Seam) -> None:
    process, said = child(seam, share)
    name = said.recv()
    process.terminate()
    assert not Path("/dev/shm", name).exists()
    assert ended(process) == -signal.SIGKILL


def test_a_process_that_has_ended_breaks_its_group(seam: Seam, group: ProcessGroup) -> None:
    process, said = child(seam, stay)
    said.recv()
    group.settle()
    assert not group.is_broken()
    os.kill(process.pid or 0, signal.SIGKILL)
    wait_until(group.is_broken)
    ended(process)


def test_a_forked_process_that_ends_by_itself_takes_its_shared_memory_along(
    group: ProcessGroup, forks: ForkServer
) -> None:
    forks.start(os.environ)
    process, said = child(Seam(group.folder, forks.address), share_and_return)
    name = said.recv()
    assert ended(process) == 0
    assert not Path("/dev/shm", name).exists()


def share_and_return(pipe: Connection) -> None:
    memory = shared_memory.SharedMemory(create=True, size=SHARED_BYTES)
    pipe.send(memory.name)
    kept.append(memory)


kept: list[shared_memory.SharedMemory] = []


def test_nothing_starts_once_the_seam_is_closed(seam: Seam) -> None:
    seam.close()
    with pytest.raises(StartClosed):
        child(seam, stay)


def test_a_process_that_was_started_while_the_seam_closed_is_killed(group: ProcessGroup) -> None:
    def closing() -> None:
        closed.close()

    closed = Seam(group.folder, closing)
    process, _ = child(closed, stay)
    assert ended(process) == -signal.SIGKILL


def test_a_fork_server_that_ends_takes_no_child_along_and_the_next_process_starts_afresh(
    scratch: Path, group: ProcessGroup, forks: ForkServer, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_slow_start.cache_clear()
    forks.start(os.environ)
    address = forks.address()
    seam = Seam(group.folder, lambda: address)
    first, said = child(seam, stay)
    said.recv()
    os.kill(forks.pid or 0, signal.SIGKILL)
    wait_until(lambda: not _is_usable(forks))
    assert first.is_alive()
    with caplog.at_level(logging.WARNING):
        second, said_next = child(seam, stay)
        assert said_next.recv() == "here"
    assert [record.message for record in caplog.records] == ["engine_fast_start_off"]
    group.end()
    assert (ended(first), ended(second)) == (255, -signal.SIGKILL)


def _is_usable(forks: ForkServer) -> bool:
    try:
        forks.address()
    except ForkServerUnusable:
        return False
    return True


def test_a_fork_server_that_finds_itself_unfit_says_why(scratch: Path, forks: ForkServer) -> None:
    forks.start({**os.environ, PROBLEM: "it has touched a GPU"})
    with pytest.raises(ForkServerUnusable, match="^it has touched a GPU$"):
        forks.address()


def test_a_fork_server_that_does_not_come_up_says_so(scratch: Path) -> None:
    broken = ForkServer(scratch, "tests.fakes.no_such_module")
    broken.start(os.environ)
    with pytest.raises(ForkServerUnusable, match="it has ended"):
        broken.address()
    broken.stop()
    nowhere = ForkServer(scratch / "nowhere", MODULE)
    nowhere.start(os.environ)
    with pytest.raises(ForkServerUnusable, match="it cannot be started: No such file"):
        nowhere.address()
    with pytest.raises(ForkServerUnusable, match="it was not started"):
        ForkServer(scratch).address()


@pytest.mark.parametrize("import_seconds", [0, 60])
def test_a_fork_server_ends_with_its_owner_while_it_imports_too(scratch: Path, import_seconds: int) -> None:
    script = (
        "import os, sys; from pathlib import Path; from headrace_server.engine.vllm_forkserver import ForkServer\n"
        f"server = ForkServer(Path(sys.argv[1]), {MODULE!r}); server.start(os.environ)\n"
        "print(server.pid, flush=True); sys.stdin.read(); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, IMPORT_SECONDS: str(import_seconds)}
    command = [sys.executable, "-c", script, str(scratch)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        wait_until(lambda: _heeds_its_owner(server))
        owner.stdin.close()
        wait_until(lambda: life_of(server) is Life.GONE)


def _heeds_its_owner(server: int) -> bool:
    """Whether it has come so far that it ignores SIGTERM."""
    status = Path(f"/proc/{server}/status").read_text()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    return bool(ignored & 1 << signal.SIGTERM - 1)


def test_a_process_is_told_from_a_later_one_with_its_id(group: ProcessGroup) -> None:
    (group.folder / str(os.getpid())).write_text("some other time")
    group.end()  # or this test ends here
    assert life_of(os.getpid()) is Life.RUNNING
    assert birth_mark(os.getpid()).isdigit()


def test_groups_of_one_scratch_have_folders_of_their_own(scratch: Path) -> None:
    one, other = ProcessGroup(scratch), ProcessGroup(scratch)
    assert one.folder != other.folder
    one.end()
    assert other.folder.exists()
    other.end()


def test_a_zombie_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: life_of(process.pid) is Life.GONE)
    process.wait()
    assert not life_of(process.pid)
