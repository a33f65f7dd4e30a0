"""loadtests.launcher and process_table, with small programs in the place of servers."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loadtests.launcher import Server, ServerFailed, Side, Subject, command
from loadtests.process_table import ProcessId, descendants, living_processes, parse_stat
from loadtests.sse_client import Address, ExchangeFailed

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

# A server whose child has a session of its own, outlives its parent, and takes no notice of SIGTERM.
STUBBORN_CHILD = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open("child", "w").close()
    time.sleep(60)
time.sleep(60)
"""


@asynccontextmanager
async def running(program: str, folder: Path) -> AsyncIterator[Server]:
    line = [sys.executable, "-c", program]
    server = await Server.spawn(Side.VLLM, line, Address("127.0.0.1", 1), folder)
    try:
        yield server
    finally:
        await server.stop()


async def until_exists(path: Path) -> None:
    async with asyncio.timeout(20):
        while not path.exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
            await asyncio.sleep(0.01)


async def test_stopping_ends_children_in_other_sessions_that_ignore_sigterm(tmp_path: Path) -> None:
    async with running(STUBBORN_CHILD, tmp_path) as server:
        await until_exists(tmp_path / "child")
        pids = {entry.pid for entry in server.processes()}
        assert len(pids) == 2
    assert not pids & living_processes().keys()
    assert server.processes() == []


async def test_a_child_that_outlives_its_parent_is_still_ended(tmp_path: Path) -> None:
    async with running(STUBBORN_CHILD, tmp_path) as server:
        await until_exists(tmp_path / "child")
        leader, child = sorted(server.processes(), key=lambda entry: entry.started)
        server._process.kill()
        await server._process.wait()
        assert [entry.pid for entry in server.processes()] == [child.pid]
    assert not {leader.pid, child.pid} & living_processes().keys()


async def test_pausing_stops_the_whole_tree_and_resuming_continues_it(tmp_path: Path) -> None:
    async with running(STUBBORN_CHILD, tmp_path) as server:
        await until_exists(tmp_path / "child")
        await server.pause()
        assert [entry.is_stopped for entry in server.processes()] == [True, True]
        await server.resume()
        assert [entry.is_stopped for entry in server.processes()] == [False, False]


async def test_a_paused_server_can_be_ended(tmp_path: Path) -> None:
    async with running(STUBBORN_CHILD, tmp_path) as server:
        await until_exists(tmp_path / "child")
        await server.pause()
    assert server.processes() == []


async def test_a_server_that_dies_ends_the_work_with_its_last_log_lines(tmp_path: Path) -> None:
    program = "print(*range(100), sep='\\n', flush=True); raise SystemExit(3)"
    async with running(program, tmp_path) as server:
        with pytest.raises(ServerFailed) as failure:
            await server.while_alive(asyncio.sleep(60))
    first, *log = str(failure.value).splitlines()
    assert first == "vllm: ended with exit code 3; its log ends:"
    assert log == [f"  {number}" for number in range(85, 100)]


async def test_work_that_fails_names_the_server(tmp_path: Path) -> None:
    async def fail() -> None:
        raise ExchangeFailed("no connection")

    async with running("import time; time.sleep(60)", tmp_path) as server:
        with pytest.raises(ServerFailed, match="vllm: no connection"):
            await server.while_alive(fail())


async def test_work_that_is_done_gives_its_result(tmp_path: Path) -> None:
    async with running("import time; time.sleep(60)", tmp_path) as server:
        assert await server.while_alive(asyncio.sleep(0, "done")) == "done"


async def test_memory_of_the_server_is_part_of_the_sum_over_its_tree(tmp_path: Path) -> None:
    async with running(STUBBORN_CHILD, tmp_path) as server:
        await until_exists(tmp_path / "child")
        own, together = server.peak_memory()
    assert 0 < own < together


def test_both_sides_serve_the_same_subject(tmp_path: Path) -> None:
    subject = Subject('{"models": []}', ("--model", "/m"), on_cpu=True)
    theirs = command(Side.VLLM, subject, port=7, folder=tmp_path)
    assert theirs[1:] == [
        *("-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", "7"),
        *("--model", "/m"),
    ]
    ours = command(Side.HEADRACE, subject, port=7, folder=tmp_path)
    assert ours[1:4] == ["-m", "headrace_server", "serve"]
    assert Path(ours[ours.index("--config") + 1]).read_text(encoding="utf-8") == '{"models": []}'


def test_a_process_name_with_parentheses_and_spaces_is_read_over() -> None:
    numbers = " ".join(str(number) for number in range(4, 53))
    entry = parse_stat(f"42 (a) b (c)) S {numbers}")
    assert (entry.pid, entry.state, entry.parent, entry.group) == (42, "S", 4, 5)
    assert (entry.cpu_ticks, entry.started) == (14 + 15, 22)


def test_descendants_are_found_over_generations_and_strangers_are_not() -> None:
    table = {
        ProcessId(pid): parse_stat(f"{pid} (x) S {parent} " + " ".join("0" * 48))
        for pid, parent in ((1, 0), (10, 1), (11, 10), (12, 11), (20, 1))
    }
    assert descendants(ProcessId(10), table) == {10, 11, 12}
    assert descendants(ProcessId(99), table) == set()
