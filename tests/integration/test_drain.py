"""The end of a server as its clients see it: what was admitted comes to its end, what comes later is told to go
elsewhere, and nothing that is idle holds it up."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.fakes.command import headrace
from tests.fakes.process import ServerProcess, running_server

pytestmark = pytest.mark.timeout(120)

URL = "/v1/chat/completions"
SOON_SECONDS = 4.0  # less than uvicorn waits for connections, and than the drains here would take


def body(num_tokens: int, model: str = "words", *, stream: bool = True) -> dict[str, object]:
    messages = [{"role": "user", "content": "hi"}]
    return {"model": model, "messages": messages, "max_tokens": num_tokens, "stream": stream}


@contextmanager
def serving(folder: Path, *, drain_seconds: float = 600.0) -> Iterator[ServerProcess]:
    """A server of 20 tokens a second that has also a model that takes for ever to load."""
    (folder / "headrace.yaml").write_text(
        f"server: {{drain_seconds: {drain_seconds}}}\n"
        "models:\n"
        "  - {id: words, engine: synthetic, synthetic: {itl_ms: 50}}\n"
        "  - {id: slow, engine: synthetic, load: demand, synthetic: {load_seconds: 600}}\n"
    )
    with running_server(folder / "headrace.yaml", folder / "log") as server:
        yield server


def client_of(server: ServerProcess) -> httpx.Client:
    return httpx.Client(base_url=server.base_url, trust_env=False, timeout=60)


def until(client: httpx.Client, path: str, status: int) -> httpx.Response:
    """The first answer of this status."""
    while (response := client.get(path)).status_code != status:
        time.sleep(0.01)
    return response


def has_ended(pid: int, seconds: float) -> bool:
    """Whether a process ends within so many seconds; its parent has not asked yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


def error_of(lines: list[str]) -> str:
    """The code of the error event in which a stream ended."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert "[DONE]" not in data
    return str(json.loads(data[-1])["error"]["code"])


def test_while_it_drains_a_stream_goes_on_new_requests_are_refused_and_probes_tell(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as server,
        client_of(server) as client,
        client.stream("POST", URL, json=body(40)) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        os.kill(server.pid, signal.SIGTERM)
        assert until(client, "/readyz", 503).json()["reason"] == "draining"
        assert client.get("/livez").status_code == 200
        for stream in (True, False):
            refused = client.post(URL, json=body(5, stream=stream))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) > 0
        with httpx.Client(base_url=server.base_url, trust_env=False) as newcomer:
            assert newcomer.get("/livez").status_code == 200  # the door is open
        assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert has_ended(server.pid, SOON_SECONDS)


def test_what_takes_too_long_ends_in_an_error_event(tmp_path: Path) -> None:
    with (
        serving(tmp_path, drain_seconds=0.3) as server,
        client_of(server) as client,
        client.stream("POST", URL, json=body(2000)) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        os.kill(server.pid, signal.SIGTERM)
        assert error_of(list(lines)) == "draining"


def test_the_second_signal_cuts_what_is_open(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as server,
        client_of(server) as client,
        client.stream("POST", URL, json=body(2000)) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        os.kill(server.pid, signal.SIGTERM)
        until(client, "/readyz", 503)
        os.kill(server.pid, signal.SIGTERM)
        assert error_of(list(lines)) == "draining"
        assert has_ended(server.pid, SOON_SECONDS)


def test_a_request_that_was_held_is_told_too(tmp_path: Path) -> None:
    with serving(tmp_path) as server, client_of(server) as client, client_of(server) as other:
        request = client.build_request("POST", URL, json=body(5, "slow", stream=False))
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            content = request.read()
            head = f"POST {URL} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
            while other.get("/admin/models").json()["models"][1]["num_held"] == 0:
                time.sleep(0.01)
            os.kill(server.pid, signal.SIGTERM)
            until(other, "/readyz", 503)
            os.kill(server.pid, signal.SIGTERM)
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code": "draining"' in answer
        assert b"x-headrace-model-state: cold" in answer.lower()


def test_nothing_that_is_idle_holds_up_the_end(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as server,
        client_of(server) as idle,
        client_of(server) as listening,
        listening.stream("GET", "/admin/events") as events,
        client_of(server) as waiting,
    ):
        assert idle.get("/livez").status_code == 200
        lines = events.iter_lines()
        assert next(lines) == "event: model"
        with socket.create_connection(("127.0.0.1", server.port)) as silent:
            assert waiting.get("/livez").status_code == 200
            os.kill(server.pid, signal.SIGINT)
            assert has_ended(server.pid, SOON_SECONDS)
            assert silent.recv(1) == b""
        assert [line for line in lines if line.startswith("event: error")] == []


def test_an_operator_who_waits_for_a_load_is_told(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        command = [sys.executable, "-m", "headrace_server", "load", "slow", "--url", server.base_url]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loading:
            with client_of(server) as client:
                while client.get("/admin/models").json()["models"][1]["state"] != "loading":
                    time.sleep(0.01)
            os.kill(server.pid, signal.SIGINT)
            assert has_ended(server.pid, SOON_SECONDS)
            _, errors = loading.communicate(timeout=60)
        assert loading.returncode == 1
        assert errors.splitlines()[-1] == "headrace: the server is shutting down"


def test_the_third_signal_waits_for_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            f"POST {URL} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n".encode()
        )
        with client_of(server) as client:
            client.get("/livez")
            client.get("/livez")
        os.kill(server.pid, signal.SIGTERM)
        while "drain_ended" not in (tmp_path / "log").read_text():
            time.sleep(0.01)
        assert not has_ended(server.pid, 1.0)  # uvicorn waits for the rest of the request
        for _ in range(2):
            os.kill(server.pid, signal.SIGTERM)
            time.sleep(0.05)  # two signals that are pending at once are one
        assert has_ended(server.pid, 2.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_models_load_ends_the_server_at_once(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "headrace.yaml").write_text(
        f"server: {{state_dir: {tmp_path}}}\nmodels: [{{id: a, engine: synthetic, synthetic: {{load_seconds: 600}}}}]\n"
    )
    command = [sys.executable, "-m", "headrace_server", "serve", "--config", "headrace.yaml", "--port", "0"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log) as process,
    ):
        while '"loading"' not in (tmp_path / "log").read_text():
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(SOON_SECONDS) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_the_end_does_not_wait_for_an_import_that_is_under_way(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text(
        f"server: {{state_dir: {tmp_path}, port: 0}}\nmodels: [{{id: a, engine: synthetic}}]\n"
    )
    program = (
        "import sys, time, headrace_server.runtime as runtime\n"
        "runtime.preload_engine = lambda *_, **__: (print('importing', file=sys.stderr, flush=True), time.sleep(600))\n"
        "sys.argv = ['headrace', 'serve', '--config', 'headrace.yaml']\n"
        "from headrace_server.cli import main; main()\n"
    )
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=log, stderr=log) as process,
    ):
        while not {"importing", "Headrace is ready"} <= set(re.findall("importing|Headrace is ready", read(tmp_path))):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON_SECONDS) == 0
    assert not list(tmp_path.glob("*.sock"))
    assert "Traceback" not in read(tmp_path)


def read(folder: Path) -> str:
    return (folder / "log").read_text()


def drain(server: ServerProcess, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return headrace("drain", *arguments, env={"HEADRACE_SERVER__STATE_DIR": str(server.state_dir)})


def test_the_command_waits_for_what_is_open_and_the_server_ends(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as server,
        client_of(server) as client,
        client.stream("POST", URL, json=body(60)) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        done = drain(server)
        assert (done.returncode, done.stdout) == (0, "drained\n")
        assert re.search(r"^waiting for 1 request$", done.stderr, re.MULTILINE)
        assert list(lines)[-2:] == ["data: [DONE]", ""]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
        assert has_ended(server.pid, SOON_SECONDS)


def test_the_command_says_how_many_requests_it_cut(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as server,
        client_of(server) as client,
        client.stream("POST", URL, json=body(2000)) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        done = drain(server, "--deadline", "0.2")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "headrace: drained, but 1 request had to be cut"
        assert error_of(list(lines)) == "draining"


def test_a_server_that_was_drained_over_http_ends_well(tmp_path: Path) -> None:
    with serving(tmp_path) as server, client_of(server) as client:
        response = client.post("/admin/drain", json={})
        assert (response.status_code, response.json()) == (200, {"cut": 0})
        assert has_ended(server.pid, SOON_SECONDS)
