"""The operator's commands against a running server, through its control socket and over HTTP."""

import json
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.fakes.command import headrace, one_line
from tests.fakes.process import ServerProcess, running_server

pytestmark = pytest.mark.timeout(120)

KEY = "a-key-that-is-long-enough"
MODELS = """
engine: {memory_budget_bytes: 1000000000}
models:
  - {id: a, aliases: [first], engine: synthetic, synthetic: {memory_bytes: 600000000}, keep_alive_seconds: 300}
  - {id: b, engine: synthetic, load: demand, synthetic: {memory_bytes: 600000000, load_seconds: 0.5}}
  - {id: c, engine: synthetic, load: demand, synthetic: {memory_bytes: 3000000000}}
"""


@dataclass(frozen=True, slots=True)
class House:
    """A server that asks for a key, and how commands find it."""

    server: ServerProcess
    config: Path

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command of this machine's operator, who has no key."""
        return headrace(
            *arguments, "--config", str(self.config), env={"HEADRACE_SERVER__STATE_DIR": str(self.server.state_dir)}
        )

    def states(self) -> dict[str, str]:
        """What `ps --all --json` says."""
        return {model["id"]: model["state"] for model in json.loads(self.run("ps", "--all", "--json").stdout)["models"]}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    (folder / "keys").write_text(KEY)
    config = folder / "headrace.yaml"
    config.write_text(f"auth: {{keys_file: {folder / 'keys'}}}\n{MODELS}")
    with running_server(config, folder / "log") as server:
        yield House(server, config)


@pytest.fixture(autouse=True)
def fresh(house: House) -> None:
    """`a` in memory, nothing else, nothing pinned."""
    with httpx.Client(base_url=house.server.base_url, headers={"x-api-key": KEY}, trust_env=False) as client:
        for model in "abc":
            client.post(f"/admin/models/{model}/unpin", json={})
            client.post(f"/admin/models/{model}/unload", json={})
        assert client.post("/admin/models/a/load", json={}).status_code == 200


def test_only_the_operator_can_open_it(house: House) -> None:
    path = house.server.state_dir / f"control-{house.server.port}.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_socket_needs_no_key_and_the_port_does(house: House) -> None:
    path = str(house.server.state_dir / f"control-{house.server.port}.sock")
    with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://localhost") as client:
        assert client.get("/admin/models").status_code == 200
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/models").status_code == 404
    assert httpx.get(f"{house.server.base_url}/admin/models", trust_env=False).status_code == 401


def test_ps_shows_what_is_in_memory_and_all_models_where_that_is_asked_for(house: House) -> None:
    head, line, memory = house.run("ps").stdout.splitlines()
    assert head.split() == ["MODEL", "STATE", "MEMORY", "REQUESTS", "HELD", "IDLE/KEEP", "PIN", "DETAIL"]
    assert line.split()[:6] == ["a", "ready", "600.0", "MB", "0", "0"]
    assert "/5 min 0 s" in line
    assert memory == "600.0 MB of 1.0 GB in use"
    assert [line.split()[0] for line in house.run("ps", "--all").stdout.splitlines()[1:-1]] == ["a", "b", "c"]


def test_ps_prints_json(house: House) -> None:
    document = json.loads(house.run("ps", "--json").stdout)
    assert document["memory"] == {"budget_bytes": 10**9, "used_bytes": 600_000_000}
    assert [model["id"] for model in document["models"]] == ["a"]


def test_load_makes_room_shows_what_happens_and_returns_when_the_model_serves(house: House) -> None:
    done = house.run("load", "b")
    assert done.returncode == 0
    assert done.stdout.startswith("b is ready after ")
    assert done.stdout.endswith("600.0 MB of memory\n")
    assert "b: loading" in done.stderr.splitlines()
    assert house.states() == {"a": "cold", "b": "ready", "c": "cold"}


def test_unload_frees_the_memory_and_again_is_no_error(house: House) -> None:
    for _ in range(2):
        done = house.run("unload", "first")
        assert (done.returncode, done.stdout) == (0, "a is not in memory\n")
    assert house.run("ps").stdout.splitlines()[1:] == ["0 B of 1.0 GB in use"]


def test_a_pinned_model_is_not_evicted_until_it_is_let_go(house: House) -> None:
    assert house.run("pin", "a").stdout == "a is pinned until the server ends\n"
    refused = house.run("load", "b")
    assert refused.returncode == 1
    assert "a would have to be unpinned" in refused.stderr.splitlines()[-1]
    assert house.run("pin", "a", "--off").stdout == "a is not pinned\n"
    assert house.run("load", "b").returncode == 0


def test_a_model_that_never_fits_is_the_reason_in_one_line(house: House) -> None:
    done = house.run("load", "c")
    assert (done.returncode, done.stdout) == (1, "")
    assert "engine.memory_budget_bytes" in done.stderr.splitlines()[-1]
    assert house.states()["a"] == "ready"


@pytest.mark.parametrize("command", ["load", "unload", "pin"])
def test_an_unknown_model_is_one_line_and_exit_1(house: House, command: str) -> None:
    done = house.run(command, "nobody")
    assert done.returncode == 1
    assert "'nobody' does not exist" in one_line(done)


def test_a_url_with_the_key_in_the_environment_reaches_any_server(house: House) -> None:
    url = f"{house.server.base_url}/v1"
    done = headrace("ps", "--url", url, env={"HEADRACE_API_KEY": KEY})
    assert done.stdout.splitlines()[1].split()[:2] == ["a", "ready"]
    refused = headrace("ps", "--url", url)
    assert refused.returncode == 1
    assert "API key" in one_line(refused)


def test_no_server_is_one_line_that_names_the_path(tmp_path: Path) -> None:
    done = headrace("ps", env={"HEADRACE_SERVER__STATE_DIR": str(tmp_path)})
    assert done.returncode == 1
    assert str(tmp_path / "control-8000.sock") in one_line(done)
    done = headrace("ps", env={"HEADRACE_SERVER__STATE_DIR": "/dev/null"})
    assert done.returncode == 1
    assert "/dev/null/control-8000.sock" in one_line(done)


@pytest.mark.parametrize("arguments", [("--deadline", "-1"), ("--deadline", "soon"), ("--deadline", "nan")])
def test_what_is_no_deadline_drains_nothing(house: House, arguments: tuple[str, str]) -> None:
    done = house.run("drain", *arguments)
    assert done.returncode == 2
    assert "deadline" in done.stderr
    assert httpx.get(f"{house.server.base_url}/readyz", trust_env=False).status_code == 200


def serve(state_dir: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "headrace_server", "serve", "--config", str(state_dir.parent / "headrace.yaml")]
    (state_dir.parent / "headrace.yaml").write_text(
        f"server: {{state_dir: {state_dir}}}\nmodels: [{{id: a, engine: synthetic}}]\n"
    )
    return subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(server: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and standard error of a server that is told to end once it is ready."""
    with server:
        assert server.stdout is not None
        if server.stdout.readline():
            server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=60)
        return server.returncode, errors


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hs-") as name:
        yield Path(name)


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


def test_a_server_that_cannot_have_a_socket_warns_once_and_serves(folder: Path) -> None:
    (folder / "file").write_text("mine")
    code, errors = ended(serve(folder / "file", "--port", "0"))
    assert code == 0
    (warning,) = [line for line in errors.splitlines() if '"warning"' in line]
    assert json.loads(warning)["event"] == "no_control_socket"
    assert (folder / "file").read_text() == "mine"


def test_the_socket_of_a_killed_server_is_replaced_by_the_next_and_removed_at_its_end(folder: Path) -> None:
    state_dir, port = folder / "state", free_port()
    with serve(state_dir, "--port", str(port)) as first:
        assert first.stdout is not None
        assert first.stdout.readline()
        first.kill()
        first.communicate(timeout=60)
    assert [path.name for path in state_dir.iterdir()] == [f"control-{port}.sock"]
    code, errors = ended(serve(state_dir, "--port", str(port)))
    assert (code, "warning" in errors) == (0, False)
    assert list(state_dir.iterdir()) == []


def test_the_socket_of_a_live_server_is_not_taken_by_one_on_another_address(folder: Path) -> None:
    state_dir, port = folder / "state", free_port()
    with serve(state_dir, "--port", str(port)) as first:
        assert first.stdout is not None
        assert first.stdout.readline()
        code, errors = ended(serve(state_dir, "--port", str(port), "--host", "127.0.0.2"))
        assert code == 2
        assert f"control-{port}.sock" in errors
        assert len(errors.splitlines()) == 1
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
        assert first.returncode == 0
