"""The origin as a process of its own: how it is controlled, and that it ends with its parent."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.origin.faults import Fault, Faults, Flip, Redirect, Reset, Status, When
from loadtests.origin.link import Link
from loadtests.origin.remote import OriginFailed, RemoteOrigin, origin_process
from loadtests.origin.server import Origin, running_origin
from loadtests.origin.tiny_model import write_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


@pytest.fixture
def local(model: Path) -> Iterator[Origin]:
    with running_origin({"tiny": model}) as origin:
        yield origin


def status_of(address: str, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address)
    connection.request(method, path, body)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_a_process_serves_is_controlled_and_ends(model: Path) -> None:
    with origin_process({"tiny": model}, link=Link(bytes_per_second=1e9, latency_seconds=0.001)) as origin:
        status, body = status_of(origin.address, "/files/tiny/model.safetensors")
        assert (status, body) == (200, (model / "model.safetensors").read_bytes())
        assert origin.stats().body_bytes("*.safetensors") == len(body)
        origin.set_link(Link())
        origin.set_faults(Faults((Status(status=500),)))
        assert status_of(origin.address, "/files/tiny/config.json")[0] == 500
        origin.reset()
        assert origin.stats().num_requests() == 0
    with pytest.raises(ConnectionRefusedError):
        status_of(origin.address, "/files/tiny/config.json")


def test_the_process_ends_when_its_standard_input_closes(model: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "loadtests.origin", f"--model=tiny={model}"]
    ended = subprocess.run(command, cwd=repository, input=b"", capture_output=True, check=True, timeout=20)
    assert json.loads(ended.stdout)["url"].startswith("http://127.0.0.1:")


def test_a_process_that_does_not_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(OriginFailed, match="ended with 2"), origin_process({"tiny": tmp_path / "absent"}):
        pass


@pytest.mark.parametrize(
    "fault",
    [
        Reset(when=When(path="*.safetensors", first=2, most=3, probability=0.5, once_each=True), after_bytes=7),
        Flip(every_bytes=1 << 20, always=True),
        Redirect(valid_seconds=3.5),
    ],
)
def test_faults_arrive_as_they_were_sent(local: Origin, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    arrived: list[Faults] = []
    monkeypatch.setattr(local, "set_faults", arrived.append)
    RemoteOrigin(local.address).set_faults(Faults((fault,), seed=3))
    assert arrived == [Faults((fault,), seed=3)]


def test_figures_are_the_same_from_within_and_from_without(local: Origin) -> None:
    status_of(local.address, "/files/tiny/config.json")
    remote, within = RemoteOrigin(local.address).stats(), local.stats()
    assert remote.paths == within.paths
    assert remote.peak_connections >= 1


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/control/faults", b'{"faults": [{"kind": "reset", "after": 3}]}', 400),
        ("POST", "/control/faults", b'{"faults": [{"kind": "earthquake"}]}', 400),
        ("POST", "/control/link", b'{"bytes_per_minute": 3}', 400),
        ("POST", "/control/faults", b"", 400),
        ("GET", "/control/reset", b"", 404),
        ("GET", "/control/other", b"", 404),
    ],
)
def test_what_is_not_understood_is_refused(local: Origin, method: str, path: str, body: bytes, status: int) -> None:
    assert status_of(local.address, path, method, body)[0] == status


def test_control_is_neither_counted_nor_spoilt(local: Origin) -> None:
    local.set_faults(Faults((Status(),)))
    assert status_of(local.address, "/control/stats")[0] == 200
    assert local.stats().num_requests() == 0
