"""What `headrace drain` waits for beside the answer."""

import socket
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

from headrace_server.cli.control_socket import is_live
from headrace_server.cli.draining import counted, drain_server, wait_until_gone
from headrace_server.cli.operator_client import Whereabouts
from headrace_server.errors import UsageError

pytestmark = pytest.mark.timeout(30)


def test_it_waits_until_the_server_listens_no_more() -> None:
    with tempfile.TemporaryDirectory(prefix="hs-") as folder, closing(socket.socket(socket.AF_UNIX)) as listener:
        path = Path(folder) / "control-1.sock"
        listener.bind(str(path))
        listener.listen()
        assert is_live(path)
        ending = threading.Timer(0.03, listener.close)
        ending.start()
        wait_until_gone(path)
        assert not is_live(path)
        ending.join()


def test_a_server_elsewhere_is_not_waited_for() -> None:
    wait_until_gone(None)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_what_is_no_number_of_seconds_is_asked_of_no_server(seconds: float) -> None:
    with pytest.raises(UsageError, match="--deadline"):
        drain_server(Whereabouts(url="http://127.0.0.1:1"), seconds)


def test_one_request_is_one() -> None:
    assert [counted(number) for number in range(3)] == ["0 requests", "1 request", "2 requests"]
