"""The listening socket: what a connection may pile up in the kernel, and how long it may stall."""

import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from headrace_server.cli.listener import UNSENT_BYTES, bind
from headrace_server.errors import UsageError

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the options are Linux's")

STALL_SECONDS = 1.0


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's end and the end of a client that never reads, with as little room as the kernel gives."""
    with closing(bind("127.0.0.1", 0, stalled_client_seconds=STALL_SECONDS)) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            accepted.setblocking(False)
            yield accepted, client


def fill(accepted: socket.socket) -> int:
    """Send until the kernel takes no more; the bytes it took."""
    num_bytes = 0
    with suppress(BlockingIOError):
        while True:
            num_bytes += accepted.send(b"x" * 4096)
    return num_bytes


@linux_only
def test_the_kernel_takes_little_for_a_client_that_does_not_read(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    assert fill(connection[0]) < 2 * UNSENT_BYTES


@linux_only
def test_a_connection_that_stalls_is_ended_by_the_kernel(connection: tuple[socket.socket, socket.socket]) -> None:
    accepted, _ = connection
    fill(accepted)
    watch = select.poll()
    watch.register(accepted, select.POLLHUP)
    began = time.monotonic()
    assert watch.poll(20_000)
    assert time.monotonic() - began >= STALL_SECONDS * 0.9
    with pytest.raises(TimeoutError):
        accepted.send(b"more")


@linux_only
def test_a_client_that_reads_now_and_then_keeps_its_connection(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    accepted, client = connection
    fill(accepted)
    watch = select.poll()
    watch.register(accepted, select.POLLHUP)
    until = time.monotonic() + 3 * STALL_SECONDS
    while time.monotonic() < until:
        assert not watch.poll(STALL_SECONDS * 250)
        assert client.recv(65_536)
        fill(accepted)


def test_an_address_in_use_is_one_line() -> None:
    with closing(bind("127.0.0.1", 0, stalled_client_seconds=STALL_SECONDS)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}: "):
            bind("127.0.0.1", port, stalled_client_seconds=STALL_SECONDS)
