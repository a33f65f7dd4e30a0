"""The command as a user meets it: a child process, its output and its exit code."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.fakes.command import headrace, one_line
from tests.fakes.process import running_server

SYNTHETIC = "models: [{id: words, engine: synthetic}]\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "headrace.yaml"
    path.write_text(SYNTHETIC)
    return path


def test_help_imports_neither_a_web_framework_nor_an_engine() -> None:
    program = (
        "import sys; sys.argv = ['headrace', '--help']; from headrace_server.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'fastapi', 'uvicorn', 'vllm', 'torch', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_a_port_in_use_is_one_line_and_exit_2(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = headrace("serve", "--config", str(config), "--port", str(port))

    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in one_line(done)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("server: {prot: 1}", "server.prot"),
        ("server: {body_timeout_seconds: soon}", "server.body_timeout_seconds"),
        ("server: [", "not YAML"),
        ("models: [{id: a}]", "needs a source"),
        ("models: [{id: a, source: 'nope://x'}]", "nope://x"),
        ("models: [{id: a, source: 'embedded:nobody'}]", "nobody"),
        ("models: [{id: a, source: 'hf://a/b/c/d'}]", "hf://a/b/c/d"),
        ("models: [{id: a, source: /m, require_trust: much}]", "require_trust"),
        ("models: [{id: a, engine: synthetic, require_trust: file}]", "require_trust"),
        ("cache: {max_bytes: -1}", "cache.max_bytes"),
        ("cache: {bytes_per_second: fast}", "cache.bytes_per_second"),
        ("cache: {insecure_hosts: ['http://h/']}", "cache.insecure_hosts"),
        ("auth: {keys_file: /does/not/exist}", "auth.keys_file"),
        ("server: {host: 0.0.0.0}", "auth.mode: none"),
    ],
)
def test_a_configuration_that_cannot_work_is_one_line_and_exit_2(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    done = headrace("serve", "--config", str(tmp_path / "bad.yaml"), "--port", "0")

    assert done.returncode == 2
    assert named in one_line(done)


def test_a_configuration_that_is_not_there_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = headrace("serve", "--config", str(tmp_path / "absent.yaml"))

    assert done.returncode == 2
    assert "absent.yaml" in one_line(done)


def test_an_unknown_variable_is_named_and_a_kubernetes_one_is_ignored(config: Path) -> None:
    done = headrace("config", "check", "--config", str(config), env={"HEADRACE_SERVER__PROT": "1"})
    assert done.returncode == 2
    assert "HEADRACE_SERVER__PROT" in one_line(done)

    done = headrace("config", "check", "--config", str(config), env={"HEADRACE_PORT": "tcp://10.0.0.1:80"})
    assert done.returncode == 0


def test_a_gguf_file_and_a_pickle_checkpoint_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    done = headrace("serve", "--model", str(tmp_path))
    assert done.returncode == 2
    assert "pickle" in one_line(done)

    (tmp_path / "pytorch_model.bin").unlink()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    done = headrace("serve", "--model", str(tmp_path))
    assert done.returncode == 2
    assert "GGUF" in one_line(done)


def test_a_server_without_a_model_that_starts_ends_with_the_reason(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    path = tmp_path / "headrace.yaml"
    path.write_text(f"models: [{{id: far, engine: upstream, upstream: {{url: '{address}'}}}}]")
    done = headrace("serve", "--config", str(path), "--port", "0")

    assert done.returncode == 1
    assert "no model could be started: far: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_while_a_stream_runs_ends_the_server_well(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    path.write_text("models: [{id: words, engine: synthetic, synthetic: {itl_ms: 5}}]\n")
    body = {"model": "words", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100, "stream": True}
    with (
        running_server(path, tmp_path / "log") as server,
        httpx.stream("POST", f"{server.base_url}/v1/chat/completions", json=body, trust_env=False) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        os.kill(server.pid, signal.SIGTERM)
        assert list(lines)[-2:] == ["data: [DONE]", ""]


def test_run_answers_on_the_running_server(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = tmp_path / "headrace.yaml"
    path.write_text(f"server: {{port: {port}}}\n{SYNTHETIC}")
    alone = headrace("run", "words", "hello", "--config", str(path), "--max-tokens", "5")
    with running_server(path, tmp_path / "log") as server:
        served = tmp_path / "served.yaml"
        served.write_text(f"server: {{port: {server.base_url.rpartition(':')[2]}}}\n{SYNTHETIC}")
        through_server = headrace("run", "words", "hello", "--config", str(served), "--max-tokens", "5")
        log = (tmp_path / "log").read_text()

    assert alone.returncode == through_server.returncode == 0
    assert alone.stdout == through_server.stdout
    assert len(alone.stdout.split()) == 5
    assert "/v1/chat/completions" in log


def test_run_shows_a_server_with_keys_its_own_and_says_so_where_it_has_none(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    (tmp_path / "keys").write_text("hunter2hunter2hunter2\n")
    path.write_text(f"auth: {{keys_file: {tmp_path / 'keys'}}}\n{SYNTHETIC}")
    with running_server(path, tmp_path / "log") as server:
        served = tmp_path / "served.yaml"
        served.write_text(f"server: {{port: {server.port}}}\n{SYNTHETIC}")
        command = ("run", "words", "hello", "--config", str(served), "--max-tokens", "5")
        refused = headrace(*command)
        answered = headrace(*command, env={"HEADRACE_API_KEY": "hunter2hunter2hunter2"})

    assert refused.returncode == 1
    assert "HEADRACE_API_KEY" in one_line(refused)
    assert (answered.returncode, len(answered.stdout.split())) == (0, 5)


def test_config_show_masks_secrets(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    path.write_text(
        "models: [{id: a, engine: upstream, upstream: {url: 'http://127.0.0.1:1', api_key: hunter2hunter2}}]"
    )
    done = headrace("config", "show", "--config", str(path))

    assert done.returncode == 0
    assert "hunter2" not in done.stdout
    assert "http://127.0.0.1:1" in done.stdout


def test_config_schema_is_json_schema() -> None:
    assert json.loads(headrace("config", "schema").stdout)["title"] == "Settings"


def test_version_tells_ours_and_pythons() -> None:
    versions = json.loads(headrace("version", "--json").stdout)

    assert versions["headrace"] == "0.1.0"
    assert versions["python"].startswith("3.")


def test_models_on_demand_are_counted_and_loaded_for_whoever_asks(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    path.write_text("models: [{id: a, engine: synthetic}, {id: b, engine: synthetic, load: demand}]\n")
    with running_server(path, tmp_path / "log") as server:
        served = tmp_path / "served.yaml"
        served.write_text(f"server: {{port: {server.port}}}\nmodels: [{{id: b, engine: synthetic}}]\n")
        done = headrace("run", "b", "hello", "--config", str(served), "--max-tokens", "5")
        assert (done.returncode, len(done.stdout.split())) == (0, 5)
        assert '"model_loaded", "model": "b"' in (tmp_path / "log").read_text()


def test_a_server_of_models_on_demand_is_ready_at_once_and_run_loads_one_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "headrace.yaml"
    path.write_text("models: [{id: words, engine: synthetic, load: demand}]\n")
    with running_server(path, tmp_path / "log") as server:
        states = httpx.get(f"{server.base_url}/readyz", trust_env=False)
        assert (states.status_code, states.json()["models"]) == (200, {"words": "cold"})
    alone = headrace("run", "words", "hello", "--config", str(path), "--max-tokens", "5")
    assert (alone.returncode, len(alone.stdout.split())) == (0, 5)
