"""`headrace serve` with models that are fetched: what it says when they do not come, and that it ends at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtests.origin.faults import Faults, Stall, When
from loadtests.origin.server import Origin, running_origin
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.process import is_gone, running_server

pytestmark = pytest.mark.timeout(120)

STALLED = Faults((Stall(when=When(path="*/config.json"), seconds=600),))


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    write_checkpoint(tmp_path / "m")
    with running_origin({"m": tmp_path / "m"}) as running:
        yield running


@contextmanager
def serving(folder: Path, source: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A server with one model from `source`; its log, in JSON, goes to `folder`/log."""
    document = {
        "cache": {"dir": str(folder / "cache")},
        "models": [{"id": "far", "source": source}],
        "telemetry": {"log_format": "json"},
    }
    (folder / "headrace.yaml").write_text(json.dumps(document))
    command = [sys.executable, "-m", "headrace_server", "serve", "--config", "headrace.yaml", "--port", "0"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, stderr=log, stdout=log, start_new_session=True) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def log_lines(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def until_logged(folder: Path, event: str) -> dict[str, Any]:
    """The first line of an event."""
    while True:
        for line in log_lines(folder):
            if line["event"] == event:
                return line
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_fetch_ends_everything_at_once(
    tmp_path: Path, origin: Origin, number: signal.Signals
) -> None:
    origin.set_faults(STALLED)
    with serving(tmp_path, f"{origin.url}/files/m/") as process:
        started = until_logged(tmp_path, "fetch_started")
        assert started["reference"] == f"{origin.url}/files/m/"
        while not origin.stats().paths:
            time.sleep(0.02)
        os.kill(process.pid, number)
        assert process.wait(20) == 0
        assert is_gone(process.pid)
    assert has_ended(started["pid"])
    assert not [line for line in log_lines(tmp_path) if line["event"] == "fetch_defect" or "exception" in line]


def test_the_fetch_does_not_outlive_a_server_that_is_killed(tmp_path: Path, origin: Origin) -> None:
    origin.set_faults(STALLED)
    with serving(tmp_path, f"{origin.url}/files/m/") as process:
        started = until_logged(tmp_path, "fetch_started")
        process.kill()
        process.wait(20)
    while not has_ended(started["pid"]):
        time.sleep(0.02)


def test_a_model_that_is_not_there_ends_the_server_with_the_reason(tmp_path: Path, origin: Origin) -> None:
    with serving(tmp_path, f"{origin.url}/files/absent/") as process:
        assert process.wait(60) == 1
    log = (tmp_path / "log").read_text()
    (line,) = [line for line in log.splitlines() if line.startswith("headrace: ")]
    failed = until_logged(tmp_path, "fetch_failed")
    assert line == f"headrace: no model could be started: far: {failed['detail']}"
    assert "Traceback" not in log


def test_somebody_who_listens_to_events_does_not_hold_up_the_end(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text("models: [{id: words, engine: synthetic}]\n")
    with (
        running_server(tmp_path / "headrace.yaml", tmp_path / "log") as server,
        httpx.stream("GET", f"{server.base_url}/admin/events", trust_env=False) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines) == "event: model"
        assert json.loads(next(lines).removeprefix("data: "))["state"] == "ready"
        os.kill(server.pid, signal.SIGTERM)
        # Not cut off when the time for ending well is over, as an answer without an end would be.
        assert list(lines) == [""]
