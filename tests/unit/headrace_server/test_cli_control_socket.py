"""The control socket as a file: whose it is, whom it makes way for, and what a server without one is told."""

import logging
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_server.cli.control_socket import control_listener, control_path, is_live, live_ports
from headrace_server.errors import UsageError
from headrace_server.tenancy.state_files import state_directory

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A directory that is not there yet, with a short name."""
    with tempfile.TemporaryDirectory(prefix="hs-") as folder:
        yield Path(folder) / "deep" / "state"


def leave_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_only_the_owner_may_open_it(state_dir: Path) -> None:
    with control_listener(state_dir, 8000) as listener:
        assert listener is not None
        path = control_path(state_dir, 8000)
        assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert is_live(path)
        assert live_ports(state_dir) == [8000]


def test_it_is_removed_at_the_end_whatever_the_end_is(state_dir: Path) -> None:
    with pytest.raises(ZeroDivisionError), control_listener(state_dir, 8000):
        raise ZeroDivisionError
    assert list(state_dir.iterdir()) == []


def test_one_that_a_dead_server_left_is_replaced(state_dir: Path) -> None:
    state_dir.mkdir(parents=True)
    path = control_path(state_dir, 8000)
    leave_stale_socket(path)
    assert not is_live(path)
    with control_listener(state_dir, 8000):
        assert is_live(path)


def test_what_dead_servers_on_other_ports_left_is_swept_and_nothing_else(state_dir: Path) -> None:
    state_dir.mkdir(parents=True)
    leave_stale_socket(control_path(state_dir, 8001))
    leave_stale_socket(state_dir / "control-x.sock")
    control_path(state_dir, 8002).touch()
    with control_listener(state_dir, 8003), control_listener(state_dir, 8000):
        assert sorted(path.name for path in state_dir.iterdir()) == [
            "control-8000.sock",
            "control-8002.sock",
            "control-8003.sock",
            "control-x.sock",
        ]


def test_a_live_one_is_refused_by_name_and_stays(state_dir: Path) -> None:
    path = control_path(state_dir, 8000)
    with control_listener(state_dir, 8000):
        with pytest.raises(UsageError, match=str(path)), control_listener(state_dir, 8000):
            raise AssertionError("it was taken")
        assert is_live(path)


def test_servers_on_other_ports_have_their_own(state_dir: Path) -> None:
    with control_listener(state_dir, 8001), control_listener(state_dir, 8000):
        leave_stale_socket(control_path(state_dir, 8002))
        (state_dir / "control-x.sock").touch()
        assert live_ports(state_dir) == [8000, 8001]


def test_a_socket_that_took_our_place_is_not_removed(state_dir: Path) -> None:
    path = control_path(state_dir, 8000)
    with control_listener(state_dir, 8000):
        path.unlink()
        path.touch()
    assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    state_dir.mkdir(parents=True)
    path = control_path(state_dir, 8000)
    path.write_text("mine")
    with control_listener(state_dir, 8000) as listener:
        assert listener is None
    assert path.read_text() == "mine"
    assert "is not a socket" in detail_of(caplog)


def test_a_state_directory_that_is_a_file_is_one_warning(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    state_dir.parent.mkdir()
    state_dir.write_text("mine")
    with control_listener(state_dir, 8000) as listener:
        assert listener is None
    assert state_dir.read_text() == "mine"
    assert "is not a directory" in detail_of(caplog)
    assert not is_live(control_path(state_dir, 8000))
    assert live_ports(state_dir) == []


def test_a_path_that_no_socket_can_have_is_one_warning(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with control_listener(state_dir / ("x" * 110), 8000) as listener:
        assert listener is None
    assert "path too long" in detail_of(caplog)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_directory_that_cannot_be_written_is_one_warning(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    state_dir.mkdir(parents=True, mode=0o500)
    with control_listener(state_dir, 8000) as listener:
        assert listener is None
    assert "Permission denied" in detail_of(caplog)


def test_a_home_that_nobody_knows_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert state_directory(Path("~/state")) == Path("/home/somebody/state")
    assert state_directory(Path("~nobody-at-all/state")).name == "state"


def detail_of(caplog: pytest.LogCaptureFixture) -> str:
    """Of the one warning."""
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == "no_control_socket"
    return str(record.__dict__["detail"])
