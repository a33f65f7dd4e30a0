"""Engines that die and servers that are killed: nothing is cut silently, nothing stays behind."""

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx

from tests.fakes.process import group_members, running_server

CHAT = "smollm2-135m-instruct"
STREAM = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "Count to ten thousand."}],
    "max_tokens": 4000,
    "ignore_eos": True,
    "stream": True,
}


async def test_a_dead_engine_is_told_and_a_killed_server_takes_its_engine_along(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text(f"models: [{{id: {CHAT}, source: 'embedded:{CHAT}'}}]")
    with running_server(tmp_path / "headrace.yaml", tmp_path / "log", killed=True) as server:
        async with httpx.AsyncClient(base_url=server.base_url, timeout=60, trust_env=False) as client:
            async with client.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
                events = answer.aiter_lines()
                assert (await anext(events)).startswith("data: ")
                kill(server.pid, "VLLM::Worker")  # EngineCore notices and ends
                last = [line async for line in events if line][-1]
            assert '"code": "engine_down"' in last

            refused = await client.post("/v1/chat/completions", json={**STREAM, "stream": False})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_down")
            ready = await client.get("/readyz")
            assert ready.status_code == 503
            assert "has stopped" in ready.json()["reason"]
            assert (await client.get("/livez")).status_code == 200


async def test_engines_end_with_a_server_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text("models: [{id: e, source: 'embedded:all-minilm-l6-v2'}]")
    with running_server(tmp_path / "headrace.yaml", tmp_path / "log", killed=True) as server:
        assert len(group_members(server.pid)) >= 3
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.to_thread(until_gone, server.pid)


def until_gone(group: int) -> None:
    """Wait until no process of the group lives."""
    deadline = time.monotonic() + 20
    while members := group_members(group):
        assert time.monotonic() < deadline, f"still there: {members}"
        time.sleep(0.1)


def kill(group: int, title: str) -> None:
    """SIGKILL to the process of a group that calls itself so."""
    found = [pid for pid in group_members(group) if Path(f"/proc/{pid}/cmdline").read_text().startswith(title)]
    assert len(found) == 1, f"{len(found)} processes called {title}"
    os.kill(found[0], signal.SIGKILL)
