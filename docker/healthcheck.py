#!/usr/bin/env -S /opt/headrace/bin/python -I -S
"""Exits 0 where the server in this container answers `/livez`.

Asks through the control socket, which is there whatever address, port and certificate the server has; where the state
directory cannot be written to, the port that the environment names. Imports next to nothing: it runs all the time.
"""

import os
import socket
import sys

TIMEOUT_SECONDS = 4.0
_REQUEST = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


def is_live(folder: str, port: int) -> bool:
    """Whether a server that keeps its state in `folder`, or else listens on `port`, says that it lives."""
    try:
        with _connected(folder, port) as connection:
            connection.settimeout(TIMEOUT_SECONDS)
            connection.sendall(_REQUEST)
            return connection.recv(64).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


def _connected(folder: str, port: int) -> socket.socket:
    for name in _names(folder):
        if name.startswith("control-") and name.endswith(".sock"):
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(os.path.join(folder, name))
            except OSError:  # of a server that was killed
                connection.close()
            else:
                return connection
    return socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def main() -> None:
    """Look where the environment says."""
    folder = os.environ.get("HEADRACE_SERVER__STATE_DIR", "")
    port = int(os.environ.get("HEADRACE_SERVER__PORT", "8000"))
    sys.exit(0 if is_live(folder, port) else 1)


if __name__ == "__main__":
    main()
