"""A server that is killed takes its engines along, whatever they do at that moment: nothing stays behind.

What becomes of requests when an engine dies and its server lives is in `test_engine_faults`.
"""

import asyncio
import os
import signal
import time
from pathlib import Path

from tests.fakes.accounted_client import ask
from tests.fakes.process import ServerProcess, group_members, running_server

CHAT = "smollm2-135m-instruct"
ENDLESS = {
    "model": "m",
    "messages": [{"role": "user", "content": "Count to ten thousand."}],
    "max_tokens": 4000,
    "ignore_eos": True,
    "stream": True,
}


def configuration(load: str) -> str:
    return (
        f"models: [{{id: m, source: 'embedded:{CHAT}', load: {load}, arguments: {{kv_cache_memory_bytes: 200000000}}}}]"
    )


async def test_engines_end_with_a_server_that_is_killed_while_they_generate(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text(configuration("startup"))
    with running_server(tmp_path / "headrace.yaml", tmp_path / "log", killed=True) as server:
        begun = asyncio.Event()
        asking = asyncio.create_task(ask(server.port, ENDLESS, begun=begun))
        await begun.wait()
        await killed(server)
        await asking


async def test_engines_end_with_a_server_that_is_killed_while_they_start(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text(configuration("demand"))
    with running_server(tmp_path / "headrace.yaml", tmp_path / "log", killed=True) as server:
        asking = asyncio.create_task(ask(server.port, ENDLESS))
        await asyncio.to_thread(server.until_called, "VLLM::Worker")
        await killed(server)
        await asking


async def killed(server: ServerProcess) -> None:
    """SIGKILL to the server alone; everything that it has started ends, and its memory goes."""
    assert len(group_members(server.pid)) >= 3
    server.remember_shared_memory()
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.to_thread(until_gone, server)


def until_gone(server: ServerProcess) -> None:
    """Wait until no process of the server's lives, and no shared memory is left of them."""
    deadline = time.monotonic() + 20
    while left := [*group_members(server.pid), *(path for path in server.shared_memory if path.exists())]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)
