"""The listening socket, and what every connection inherits from it.

A client that does not read must cost one bounded buffer and then its own request. The kernel sees to both, without a
timer for each stream: TCP_NOTSENT_LOWAT bounds what it takes from the server ahead of what it can send (its send buffer
alone grows to megabytes), and TCP_USER_TIMEOUT ends a connection whose data finds no taker; the server then sees a
client that left. Where the platform has no such option, the buffer is the kernel's own and the connection stays until
the client ends it.
"""

import socket
from contextlib import ExitStack

from headrace_server.errors import UsageError

UNSENT_BYTES = 128 * 1024
_BACKLOG = 2048


def bind(host: str, port: int, *, stalled_client_seconds: float) -> socket.socket:
    """Listen on an address.

    Raises:
        UsageError: the address is in use, not ours, or not an address.
    """
    with ExitStack() as undo:
        try:
            family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = undo.enter_context(socket.socket(family, kind, proto))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _set_tcp_option(listener, "TCP_NOTSENT_LOWAT", UNSENT_BYTES)
            _set_tcp_option(listener, "TCP_USER_TIMEOUT", round(stalled_client_seconds * 1000))
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        undo.pop_all()
    listener.set_inheritable(False)
    return listener


def _set_tcp_option(listener: socket.socket, name: str, value: int) -> None:
    number = getattr(socket, name, None)
    if number is not None:
        listener.setsockopt(socket.IPPROTO_TCP, number, value)
