"""The crowd, as a process of its own, so that its work is not the measuring client's.

    python loadtests/crowd_process.py HOST PORT NUM_IDLE NUM_SLOW

takes orders on its standard input, one line each, and answers each with how the crowd stands when it is done:

    slow     let the slow readers come that are not there
    idle     let the idle connections come, each with one answered GET /livez
    stand    only say how it stands
    rest     let the idle connections go
    leave    let all go

    {"num_idle": 2000, "num_slow": 200}

It ends when its input does. A slow reader asks for a long stream on a connection with a small receive buffer and reads
1 KiB of it every 250 ms; their reads are spread evenly over that time. One thread, no event loop: the kernel keeps the
idle connections, and a slow reader is one system call when its turn has come.
"""

import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run as a script: find the package, not its modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from headrace_server.bench.endpoint import Api, Endpoint, http_request

MODEL_NAME = "bench"  # that of `loadtests.launcher`, which is slow to import
READ_BYTES = 1024
READ_EVERY_SECONDS = 0.25
# With much less, a reader frees too little of its buffer for the kernel to tell the server (RFC 9293, 3.8.6.2.2).
RECEIVE_BUFFER_BYTES = 16 * 1024
NUM_TOKENS = 4000

_BATCHES = 20
_TIMEOUT_SECONDS = 10.0
_CONNECTIONS_PER_TURN = 10


class SlowReader:
    """A stream that is read slowly."""

    def __init__(self, endpoint: Endpoint, number: int) -> None:
        document = Api.CHAT.document(MODEL_NAME, f"slow {number}", num_tokens=NUM_TOKENS, stream=True)
        self.is_open = True
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._socket.settimeout(_TIMEOUT_SECONDS)
        self._socket.connect((endpoint.host, endpoint.port))
        self._socket.sendall(http_request(endpoint, Api.CHAT.path, document))
        self._socket.setblocking(False)

    def read(self) -> None:
        """Take what there is, at most 1 KiB."""
        if not self.is_open:
            return
        try:
            self.is_open = bool(self._socket.recv(READ_BYTES))
        except BlockingIOError:
            return
        except OSError:
            self.is_open = False

    def close(self) -> None:
        self._socket.close()


class Crowd:
    """All connections. `tick` must be called again and again; it reads from those slow readers whose turn it is."""

    def __init__(self, endpoint: Endpoint, *, num_idle: int, num_slow: int) -> None:
        self._endpoint = endpoint
        self._num_idle = num_idle
        self._num_slow = num_slow
        self._idle: list[socket.socket] = []
        self._slow: list[SlowReader] = []
        self._num_ticks = 0
        self._next_tick = time.monotonic()

    def slow(self) -> None:
        for reader in (reader for reader in self._slow if not reader.is_open):
            reader.close()
        self._slow = [reader for reader in self._slow if reader.is_open]
        for number in range(len(self._slow), self._num_slow):
            self._slow.append(SlowReader(self._endpoint, number))
            self.tick()

    def idle(self) -> None:
        self.rest()
        for number in range(self._num_idle):
            self._idle.append(self._after_one_answer())
            if number % _CONNECTIONS_PER_TURN == 0:
                self.tick()

    def _after_one_answer(self) -> socket.socket:
        connection = socket.create_connection((self._endpoint.host, self._endpoint.port), _TIMEOUT_SECONDS)
        connection.sendall(http_request(self._endpoint, "/livez"))
        if not connection.recv(4096).startswith(b"HTTP/1.1 200 "):
            raise ConnectionError("/livez was not answered with 200")
        connection.setblocking(False)
        return connection

    def stand(self) -> None:
        """Nothing changes."""

    def rest(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def leave(self) -> None:
        self.rest()
        while self._slow:
            self._slow.pop().close()

    def standing(self) -> dict[str, int]:
        """How many of each kind the server has not closed."""
        return {
            "num_idle": sum(map(_is_open, self._idle)),
            "num_slow": sum(reader.is_open for reader in self._slow),
        }

    def tick(self) -> None:
        while time.monotonic() >= self._next_tick:
            for reader in self._slow[self._num_ticks % _BATCHES :: _BATCHES]:
                reader.read()
            self._num_ticks += 1
            self._next_tick += READ_EVERY_SECONDS / _BATCHES


def _is_open(connection: socket.socket) -> bool:
    """Whether the other end has not closed it; what it answered may still lie there."""
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def orders(crowd: Crowd) -> Iterator[str]:
    """Each order as it comes, until the input ends; meanwhile the crowd has its turns."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), select.POLLIN)
    waiting = b""
    while True:
        crowd.tick()
        if poll.poll(1000 * READ_EVERY_SECONDS / _BATCHES):
            read = os.read(sys.stdin.fileno(), 4096)
            if not read:
                return
            *lines, waiting = (waiting + read).split(b"\n")
            yield from (line.decode() for line in lines)


def main() -> None:
    host, port, num_idle, num_slow = sys.argv[1:]
    crowd = Crowd(Endpoint(host, int(port)), num_idle=int(num_idle), num_slow=int(num_slow))
    actions = {
        "slow": crowd.slow,
        "idle": crowd.idle,
        "stand": crowd.stand,
        "rest": crowd.rest,
        "leave": crowd.leave,
    }
    for order in orders(crowd):
        actions[order]()
        print(json.dumps(crowd.standing()), flush=True)


if __name__ == "__main__":
    main()
