"""loadtests.launcher and sides, with small programs in the place of servers and engines."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace_server.bench import measures
from headrace_server.bench.arrivals import ClosedLoop, Load
from headrace_server.bench.endpoint import Endpoint
from headrace_server.bench.measures import Measure
from headrace_server.bench.process_table import living_processes
from headrace_server.bench.side import SideFailed
from loadtests.launcher import Program, ServerFailed, SideName, Subject, command
from loadtests.sides import FIRST_ANSWER, LIVEZ, EngineSide, ServerSide, start_side

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

# Answers as `engine_alone.py` does, and logs in between.
ENGINE = """
import json, sys
print("a line of a log")
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    work = json.loads(line)
    if len(work["prompts"]) == 13:
        sys.exit("no prompts today")
    print("another one")
    latencies = [0.1 * (place + 1) for place, _ in enumerate(work["prompts"])]
    num_tokens = work["num_tokens"] * len(latencies)
    print(json.dumps({"num_tokens": num_tokens, "seconds": 2.0, "latencies": latencies}), flush=True)
"""

# Takes one request a connection: refuses each path once, then answers it.
SERVER = """
import socket, sys
seen = set()
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    while True:
        connection, _ = listener.accept()
        with connection:
            path = connection.recv(65536).split(b" ")[1]
            status = b"200 OK" if path in seen else REFUSAL
            seen.add(path)
            connection.sendall(b"HTTP/1.1 " + status + b"\\r\\ncontent-length: 0\\r\\n\\r\\n")
"""


@asynccontextmanager
async def running(program: str, folder: Path, name: SideName = SideName.VLLM, port: int = 1) -> AsyncIterator[Program]:
    line = [sys.executable, "-c", program, str(port)]
    started = await Program.spawn(name, line, Endpoint("127.0.0.1", port), folder)
    try:
        yield started
    finally:
        await started.stop()


async def until_exists(path: Path) -> None:
    async with asyncio.timeout(20):
        while not path.exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
            await asyncio.sleep(0.01)


async def test_stopping_ends_children_in_other_sessions_that_ignore_sigterm(tmp_path: Path) -> None:
    async with running(STUBBORN_CHILD, tmp_path) as program:
        await until_exists(tmp_path / "child")
        pids = {entry.pid for entry in program.processes.entries()}
        assert len(pids) == 2
    assert not pids & living_processes().keys()
    assert program.processes.entries() == []


async def test_a_paused_program_can_be_ended(tmp_path: Path) -> None:
    async with running(STUBBORN_CHILD, tmp_path) as program:
        await until_exists(tmp_path / "child")
        await program.processes.pause()
    assert program.processes.entries() == []


async def test_a_program_that_dies_ends_the_work_with_its_last_log_lines(tmp_path: Path) -> None:
    source = "print(*range(100), sep='\\n', flush=True); raise SystemExit(3)"
    async with running(source, tmp_path) as program:
        with pytest.raises(ServerFailed) as failure:
            await program.while_alive(asyncio.sleep(60))
    first, *log = str(failure.value).splitlines()
    assert first == "vllm: ended with exit code 3; its log ends:"
    assert log == [f"  {number}" for number in range(85, 100)]


async def test_work_that_fails_names_the_program(tmp_path: Path) -> None:
    async def fail() -> None:
        raise SideFailed("completed nothing")

    async with running("import time; time.sleep(60)", tmp_path) as program:
        with pytest.raises(ServerFailed, match="vllm: completed nothing"):
            await program.while_alive(fail())


async def test_work_that_is_done_gives_its_result(tmp_path: Path) -> None:
    async with running("import time; time.sleep(60)", tmp_path) as program:
        assert await program.while_alive(asyncio.sleep(0, "done")) == "done"


def test_all_sides_serve_the_same_subject(tmp_path: Path) -> None:
    subject = Subject('{"models": []}', ("--model", "/m"), Path("/m"), on_cpu=True)
    theirs = command(SideName.VLLM, subject, port=7, folder=tmp_path)
    assert theirs[1:] == [
        *("-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", "7"),
        *("--model", "/m"),
    ]
    engine = command(SideName.ENGINE, subject, port=7, folder=tmp_path)
    assert Path(engine[1]).name == "engine_alone.py"
    assert engine[2:] == ["--model", "/m"]
    ours = command(SideName.HEADRACE, subject, port=7, folder=tmp_path)
    assert ours[1:4] == ["-m", "headrace_server", "serve"]
    assert Path(ours[ours.index("--config") + 1]).read_text(encoding="utf-8") == '{"models": []}'


async def test_the_engine_alone_is_asked_through_its_pipes_and_its_log_passed_over(tmp_path: Path) -> None:
    async with running(ENGINE, tmp_path, SideName.ENGINE) as program:
        side = await start_side(program, lambda *_: None)
        assert isinstance(side, EngineSide)
        result = await side.run_block(Load(ClosedLoop(2), num_requests=4, num_tokens=8), 0)
    assert result.figures[measures.THROUGHPUT] == 32 / 2.0
    assert result.figures[measures.LATENCY_P50] == pytest.approx(0.25)
    assert (result.num_tokens, result.tally.num_complete, result.client) == (32, 4, None)
    assert result.figures[measures.SERVER_PEAK_RSS] > 0
    assert measures.SERVER_CPU in result.figures


async def test_an_engine_that_dies_under_way_is_a_failure_with_its_log(tmp_path: Path) -> None:
    async with running(ENGINE, tmp_path, SideName.ENGINE) as program:
        side = await start_side(program, lambda *_: None)
        with pytest.raises(ServerFailed, match="(?s)engine alone: ended with exit code 1.*no prompts today"):
            await side.run_block(Load(ClosedLoop(1), num_requests=13), 0)


async def test_a_start_is_timed_to_the_first_answer(tmp_path: Path, unused_tcp_port: int) -> None:
    noted: dict[Measure, float] = {}
    busy = SERVER.replace("REFUSAL", 'b"503 Busy"')
    async with running(busy, tmp_path, SideName.HEADRACE, unused_tcp_port) as program:
        side = await start_side(program, noted.__setitem__)
    assert isinstance(side, ServerSide)
    assert list(noted) == [LIVEZ, FIRST_ANSWER]
    assert 0 < noted[LIVEZ] < noted[FIRST_ANSWER] < 60


async def test_a_refusal_that_no_waiting_changes_ends_the_start(tmp_path: Path, unused_tcp_port: int) -> None:
    wrong = SERVER.replace("REFUSAL", 'b"400 Bad Request"')
    async with running(wrong, tmp_path, SideName.VLLM, unused_tcp_port) as program:
        with pytest.raises(ServerFailed, match="vllm: /v1/chat/completions answered 400"):
            await start_side(program, lambda *_: None)
