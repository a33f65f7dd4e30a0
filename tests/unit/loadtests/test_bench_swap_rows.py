"""The rows of bench-swap: what voids them, what counts as failed, and small servers in the place of vLLM's."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace_server.bench.process_table import living_processes
from headrace_server.bench.turns import Turns
from loadtests.cache_served import WrongResult
from loadtests.launcher import ServerFailed
from loadtests.swap import orders, servers
from loadtests.swap.asking import first_answer
from loadtests.swap.compiled_start import check_kept
from loadtests.swap.journal import Journal, Load, only_load
from loadtests.swap.orders import AT_ONCE, IN_TURN, measure_orders
from loadtests.swap.rush import LOADS, ask_all
from loadtests.swap.servers import Headrace, RestartedVllm, vllm
from loadtests.swap.setting import Setting
from loadtests.swap.subjects import BenchModel

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

ONE, OTHER = BenchModel("one", ""), BenchModel("other", "")

# Answers with the name that it was started with, refuses other models, and ends when it is asked for "last-words".
SERVER = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["model"]
        if asked == "last-words":
            os._exit(3)
        delta = json.dumps({"choices": [{"delta": {"content": NAME}}]})
        body = f"data: {delta}\\n\\ndata: [DONE]\\n\\n".encode() if asked == NAME else b"{}"
        self.send_response(200 if asked == NAME else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

NAME = sys.argv[5]
HTTPServer((sys.argv[2], int(sys.argv[4])), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def small_server_in_place_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "VLLM_SERVER", ("-c", SERVER))


def load(model: str) -> Load:
    return Load(model, 1.0, 1, 1)


@pytest.mark.parametrize("loads", [[], [load("other")], [load("one"), load("other")], [load("one"), load("one")]])
def test_a_swap_in_which_not_exactly_the_one_engine_started_is_no_measurement(loads: list[Load]) -> None:
    assert only_load([load("one")], "one") == load("one")
    with pytest.raises(WrongResult, match="one engine should have started"):
        only_load(loads, "one")


def test_a_start_that_left_nothing_in_the_compile_cache_is_no_measurement(tmp_path: Path) -> None:
    (tmp_path / "compiled" / "key").mkdir(parents=True)
    with pytest.raises(WrongResult, match="nothing"):
        check_kept(tmp_path / "compiled")
    (tmp_path / "compiled" / "key" / "code").touch()
    check_kept(tmp_path / "compiled")


async def test_the_peer_ends_one_server_before_it_starts_the_next_and_the_time_has_both(tmp_path: Path) -> None:
    with Turns() as turns:
        async with RestartedVllm({"one": ("one",), "other": ("other",)}, tmp_path, turns) as peer:
            began = time.monotonic()
            _, first = await peer.swap(ONE)
            assert (first.text, serving(tmp_path)) == ("one", ["one"])
            between = time.monotonic()
            seconds, second = await peer.swap(OTHER)
            assert (second.text, serving(tmp_path)) == ("other", ["other"])
            assert 0 < peer.stop_seconds < seconds <= time.monotonic() - between < time.monotonic() - began
    assert serving(tmp_path) == []


def serving(folder: Path) -> list[str]:
    """The names of the small servers that live, whose folders are below this one."""
    names = []
    for pid in living_processes():
        try:
            is_here = Path(f"/proc/{pid}/cwd").readlink().is_relative_to(folder)
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if is_here:
            names.append(line[-2].decode())
    return names


@asynccontextmanager
async def small_server(folder: Path) -> AsyncIterator[Headrace]:
    async with vllm(("one",), folder) as program:
        assert (await first_answer(program, ONE)).text == "one"
        yield Headrace(program, Journal(folder / "log"))


async def test_a_request_that_is_refused_is_counted_and_the_others_are_answered(tmp_path: Path) -> None:
    async with small_server(tmp_path) as server:
        outcome = await ask_all(server, [ONE, OTHER, ONE])
    assert [(model.id, found.text) for model, found in outcome.answers] == [("one", "one"), ("one", "one")]
    assert len(outcome.reasons) == 1
    assert "503" in outcome.reasons[0]


async def test_requests_to_a_server_that_ends_have_failed(tmp_path: Path) -> None:
    async with small_server(tmp_path) as server:
        outcome = await ask_all(server, [BenchModel("last-words", ""), ONE])
    assert len(outcome.reasons) + len(outcome.answers) == 2
    assert outcome.reasons


async def test_a_server_that_ends_while_it_starts_is_not_waited_for(tmp_path: Path) -> None:
    async with vllm((), tmp_path) as program:
        with pytest.raises(ServerFailed, match="exit code 1"):
            await first_answer(program, ONE)


async def test_a_server_ends_with_its_context_also_when_it_is_stopped_for_the_turn_of_another(tmp_path: Path) -> None:
    with Turns() as turns:
        async with RestartedVllm({"one": ("one",)}, tmp_path, turns) as peer:
            await peer.swap(ONE)
            await turns.give("another")
    assert serving(tmp_path) == []


def setting(folder: Path) -> Setting:
    return Setting(folder, folder / "cache", {}, 1, lambda _line: None)


@pytest.mark.timeout(120)
async def test_orders_are_served_by_a_real_server_with_few_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "NUM_ORDERS", 1)
    found = await measure_orders(setting(tmp_path))
    loads = {side: found.samples.of(LOADS, side)[0] for side in (f"Headrace, {AT_ONCE}", f"Headrace, {IN_TURN}")}
    assert 3 <= loads[f"Headrace, {AT_ONCE}"] <= loads[f"Headrace, {IN_TURN}"]
    assert found.samples.of(LOADS, f"optimum, {IN_TURN}")[0] <= loads[f"Headrace, {IN_TURN}"]
    assert [line.met for line in found.lines if line.target is not None] == [True] * 4
