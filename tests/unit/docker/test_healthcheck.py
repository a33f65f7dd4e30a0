"""The container's health check."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from docker.healthcheck import is_live, main


@contextmanager
def answering(listener: socket.socket, status: bytes) -> Iterator[None]:
    """Answer one request so."""

    def answer() -> None:
        connection, _ = listener.accept()
        with closing(connection):
            assert connection.recv(1000).startswith(b"GET /livez HTTP/1.1\r\n")
            connection.sendall(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")

    listener.listen()
    thread = threading.Thread(target=answer)
    thread.start()
    with closing(listener):
        yield
        thread.join(5)


def unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener


def tcp() -> tuple[socket.socket, int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    listener, port = tcp()
    listener.close()
    return port


@pytest.mark.parametrize(("status", "live"), [(b"200 OK", True), (b"503 Service Unavailable", False)])
def test_the_control_socket_is_asked_whatever_port_there_is(
    tmp_path: Path, closed_port: int, status: bytes, live: bool
) -> None:
    with answering(unix(tmp_path / "control-8000.sock"), status):
        assert is_live(str(tmp_path), closed_port) is live


def test_a_socket_that_a_killed_server_left_is_passed_over(tmp_path: Path, closed_port: int) -> None:
    unix(tmp_path / "control-1.sock").close()
    assert not is_live(str(tmp_path), closed_port)
    with answering(unix(tmp_path / "control-2.sock"), b"200 OK"):
        assert is_live(str(tmp_path), closed_port)


@pytest.mark.parametrize("folder", ["", "/no/such/folder"])
def test_without_a_control_socket_the_port_is_asked(
    folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener, port = tcp()
    monkeypatch.setenv("HEADRACE_SERVER__STATE_DIR", folder)
    monkeypatch.setenv("HEADRACE_SERVER__PORT", str(port))
    with answering(listener, b"200 OK"), pytest.raises(SystemExit, match="0"):
        main()
    with pytest.raises(SystemExit, match="1"):
        main()
