"""`headrace bench` as a user runs it, against local servers with the synthetic engine."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.fakes.process import ServerProcess, running_server

SMALL = ("--tokens", "8", "--streams", "2", "--requests", "4", "--blocks", "2", "--seed", "1")
KEY = "a-key-that-is-long-enough"

Finished = subprocess.CompletedProcess[str]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "headrace_server", "bench", *arguments]


def bench(*arguments: str, env: dict[str, str] | None = None) -> Finished:
    """Run the command to its end."""
    own = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env={**own, **(env or {})}, timeout=120, check=False
    )


def one_line(done: Finished) -> str:
    """The one line that an error is."""
    lines = [line for line in done.stderr.strip().splitlines() if "busy" not in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


@contextmanager
def serving(folder: Path, name: str = "a", *, killed: bool = False, itl_ms: float = 0.2) -> Iterator[ServerProcess]:
    """A server with the synthetic engine. `itl_ms`: how slow it is."""
    config = folder / f"{name}.yaml"
    config.write_text(f"models: [{{id: words, engine: synthetic, synthetic: {{itl_ms: {itl_ms}}}}}]\n")
    with running_server(config, folder / f"{name}.log", killed=killed) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


def test_one_server_is_measured_alone(server: ServerProcess, tmp_path: Path) -> None:
    done = bench(server.base_url, *SMALL, "--json", str(tmp_path / "found.json"))

    assert done.returncode == 0, done.stderr
    assert "words: 2 streams, 8 tokens each" in done.stdout
    assert "server CPU from the kernel's process clock" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["requests"] == {"server": {"sent": 8, "complete": 8, "refused": {}, "failed": 0}}
    assert set(found["quantiles"]) == {"ttft_seconds", "itl_seconds", "tpot_seconds", "latency_seconds"}
    assert all(value > 0 for value in found["samples"]["server_cpu_seconds_per_token"]["server"])
    assert found["arguments"]["model"] == "words"
    assert found["client"]["client_cpu_seconds_per_token"] > 0


def test_two_servers_take_turns_and_both_run_on(server: ServerProcess, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with serving(tmp_path, "slow", itl_ms=8) as slow:
        done = bench(
            f"fast={server.base_url}",
            f"slow={slow.base_url}/v1",
            *SMALL,
            *("--json", str(tmp_path / "found.json"), "--picture", str(tmp_path / "found.svg")),
        )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"block (\d) of 2, (\w+):", done.stderr) == [
        ("1", "fast"),
        ("1", "slow"),
        ("2", "slow"),
        ("2", "fast"),
    ]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["paused_while_idle"] is True
    assert found["comparisons"]["itl_p50_seconds"]["ratio"]["median"] < 1
    assert (tmp_path / "found.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (("--rate", "200", "--requests", "6"), 12),
        (("--endpoint", "completions", "--streams", "2", "--requests", "3"), 6),
        (("--unary", "--streams", "1", "--requests", "3"), 6),
        (("--streams", "2"), 8),
    ],
)
def test_every_kind_of_load_is_answered(
    server: ServerProcess, tmp_path: Path, options: tuple[str, ...], sent: int
) -> None:
    path = tmp_path / "found.json"
    done = bench(server.base_url, *options, "--tokens", "4", "--blocks", "2", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text())["requests"]["server"]["complete"] == sent


def test_a_trace_is_replayed(server: ServerProcess, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:4{second}.5,{10 + second},{2 + second}" for second in range(5)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    path = tmp_path / "found.json"
    options = ("--trace", str(trace), "--trace-speed", "100", "--requests", "5", "--blocks", "1", "--json", str(path))
    done = bench(server.base_url, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["requests"]["server"]["complete"] == 5
    assert found["arguments"]["arrivals"] == "a trace at 100 × its speed"
    assert str(tmp_path) not in path.read_text()


def test_a_key_is_needed_and_given_by_option_or_variable(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    config = tmp_path / "headrace.yaml"
    config.write_text(f"auth: {{keys_file: {tmp_path / 'keys'}}}\nmodels: [{{id: words, engine: synthetic}}]")
    with running_server(config, tmp_path / "log") as server:
        without = bench(server.base_url, *SMALL)
        assert without.returncode == 2
        assert "OPENAI_API_KEY" in one_line(without)
        assert bench(server.base_url, *SMALL, "--api-key", KEY).returncode == 0
        assert bench(server.base_url, *SMALL, env={"OPENAI_API_KEY": KEY}).returncode == 0


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_refused_connection_is_one_line_and_exit_2() -> None:
    done = bench(free_address(), *SMALL)
    assert done.returncode == 2
    assert "no connection" in one_line(done)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--model", "nobody"), "nobody"),
        (("--rate", "1", "--streams", "2"), "exclude each other"),
        (("--trace", "/does/not/exist.csv"), "exist.csv"),
        (("--json", "/does/not/exist/a.json"), "--json"),
        (("--picture", "a.pdf"), "a.pdf"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_exit_2(
    server: ServerProcess, options: tuple[str, ...], named: str
) -> None:
    done = bench(server.base_url, *options)
    assert done.returncode == 2
    assert named in one_line(done)


def test_a_bad_line_of_a_trace_is_named(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,none\n")
    done = bench(server.base_url, "--trace", str(tmp_path / "bad.csv"))
    assert done.returncode == 2
    assert "bad.csv: line 2: GeneratedTokens" in one_line(done)


def test_an_interrupted_measurement_reports_what_it_has_and_continues_both_servers(tmp_path: Path) -> None:
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(tmp_path, name)).base_url for name in "ab"]
        running = stack.enter_context(
            subprocess.Popen(
                command(*urls, *SMALL, "--blocks", "10000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        assert running.stderr is not None
        assert any("block 1 of 10000, baseline" in line for line in running.stderr)
        running.send_signal(signal.SIGINT)
        shown, _ = running.communicate(timeout=60)
    # Both servers ended well after this: paused ones could not have.
    assert running.returncode == 130
    assert "throughput (tokens/s)" in shown
    assert shown.strip().endswith("interrupted")


def test_a_server_that_dies_under_way_ends_the_measurement_with_what_there_is(tmp_path: Path) -> None:
    with (
        serving(tmp_path, killed=True) as server,
        subprocess.Popen(
            command(server.base_url, *SMALL, "--blocks", "10000", "--json", str(tmp_path / "found.json")),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running,
    ):
        assert running.stderr is not None
        assert any("block 1 of" in line for line in running.stderr)
        os.kill(server.pid, signal.SIGKILL)
        shown, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert re.search(r"server (has ended|completed none).*\(block \d+ of 10000, \d+\.\d s after the first one\)", shown)
    assert json.loads((tmp_path / "found.json").read_text())["ended_early"] is True


def test_the_command_imports_neither_an_engine_nor_a_drawing_library() -> None:
    program = (
        "import sys; import headrace_server.bench.command\n"
        "print(sorted({'fastapi', 'vllm', 'torch', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
