"""The origin as a server: a thread for each connection, HTTP/1.1 with keep-alive, on loopback.

    with running_origin({"acme/tiny": directory}, link=Link(bytes_per_second=20 << 20)) as origin:
        fetch(f"{origin.url}/files/acme/tiny/model.safetensors")
        origin.set_faults(Faults((Reset(when=When(path="*.safetensors", most=1)),)))
        origin.stats().body_bytes("*.safetensors")

Leaving the context closes every connection, wakes whoever waits for the link or in a stall, and joins all threads; an
exception that a thread met and no client caused is raised there.
"""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseServer
from typing import Any, cast

from loadtests.origin.access import ANYONE, Access
from loadtests.origin.control import PREFIX, control_answer
from loadtests.origin.counters import Stats
from loadtests.origin.delivery import ConnectionBroken, Wire, deliver
from loadtests.origin.faults import NO_FAULTS, Faults
from loadtests.origin.link import UNLIMITED, Link, OpenLink
from loadtests.origin.messages import Answer, read_request
from loadtests.origin.models import Shelf
from loadtests.origin.site import Outcome, Site

HOST = "127.0.0.1"

# What an answer that nobody reads any more has put into the kernel counts as sent: little, but enough for the rate.
_SEND_BUFFER_BYTES = 512 << 10
_POLL_SECONDS = 0.02


class OriginClosing(Exception):
    """The origin is closed while an answer waits."""


class Origin:
    """A running origin; made by `running_origin`."""

    def __init__(self, site: Site, link: Link, port: int) -> None:
        self.site = site
        self._closing = threading.Event()
        self._failures: list[BaseException] = []
        self.link = OpenLink(link, pause=self.pause)
        self._server = _Server(self, port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_SECONDS,), name="origin")

    @property
    def address(self) -> str:
        """Host and port: how a registry is written in a reference."""
        return f"{HOST}:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """The root of all services, without a slash at its end."""
        return f"http://{self.address}"

    def stats(self) -> Stats:
        """What was asked and sent since the start or the last reset."""
        return self.site.counters.stats()

    def reset(self) -> None:
        """Set all counters to nothing."""
        self.site.counters.reset()

    def set_faults(self, faults: Faults) -> None:
        """Let these faults hit, and no others, from the next request on."""
        self.site.set_faults(faults)

    def set_link(self, link: Link) -> None:
        """Be as fast as `link` says, from the next request on."""
        self.link = OpenLink(link, pause=self.pause)

    def pause(self, seconds: float) -> None:
        """Sleep; raises OriginClosing when the origin is closed meanwhile."""
        if self._closing.wait(seconds):
            raise OriginClosing

    def failed(self, error: BaseException) -> None:
        """Remember what a thread met."""
        self._failures.append(error)

    def start(self) -> None:
        """Accept connections."""
        self._thread.start()

    def close(self) -> None:
        """Close everything and join all threads; raises an ExceptionGroup of what threads met."""
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.end_connections()
        self._server.server_close()
        if self._failures:
            raise BaseExceptionGroup("the origin failed", self._failures)


@contextlib.contextmanager
def running_origin(
    models: Mapping[str, Path],
    *,
    link: Link = UNLIMITED,
    faults: Faults = NO_FAULTS,
    access: Access = ANYONE,
    clock: Callable[[], float] = time.monotonic,
    port: int = 0,
) -> Iterator[Origin]:
    """An origin of `models` (directories by name) in threads of this process.

    `clock` (seconds) decides when signed addresses expire. Raises NotADirectoryError, and OSError when the port is
    taken.
    """
    origin = Origin(Site(Shelf(models), access, clock=clock), link, port)
    origin.set_faults(faults)
    origin.start()
    try:
        yield origin
    finally:
        origin.close()


class _Server(ThreadingHTTPServer):
    """Knows its connections, so that it can end them."""

    daemon_threads = False
    request_queue_size = 256

    def __init__(self, origin: Origin, port: int) -> None:
        self.origin = origin
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__((HOST, port), _Handler)

    def end_connections(self) -> None:
        """Wake every thread that reads from or writes to a client."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        with self._lock:
            self._connections.add(request)
        self.origin.site.counters.connected()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        # Not shut down first, as usual: that would send FIN where a fault wants RST.
        with self._lock:
            self._connections.discard(request)
        self.origin.site.counters.disconnected()
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What a connection's thread met; called while it is being handled."""
        if (error := sys.exception()) is not None:
            self.origin.failed(error)


class _Handler(BaseHTTPRequestHandler):
    """One connection, in a thread of its own."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, request: Any, client_address: Any, server: BaseServer) -> None:
        self._origin = cast(_Server, server).origin
        self._link = self._origin.link
        self._own_rate = self._link.connection_bucket()
        super().__init__(request, client_address, server)

    def handle(self) -> None:
        """Answer until the client leaves, a fault ends the connection, or the origin closes."""
        with contextlib.suppress(ConnectionError, ConnectionBroken, OriginClosing):
            super().handle()

    def do_GET(self) -> None:
        """Answer one request."""
        request = read_request(self.command, self.path, self.headers, self._read_body())
        if request.path.startswith(PREFIX):
            answer = control_answer(self._origin, request)
            self._send_head(answer)
            self.wfile.write(cast(bytes, answer.body))
            return
        outcome = self._origin.site.handle(request)
        self._choose_link()
        self._link.wait_latency()
        self._send_head(outcome.answer)
        if request.method != "HEAD":
            self._send_body(outcome, request.path)

    do_HEAD = do_POST = do_GET  # noqa: N815 - the same

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged; the counters tell."""

    def _read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _choose_link(self) -> None:
        """A connection takes up a new link with its next request."""
        if self._link is not self._origin.link:
            self._link = self._origin.link
            self._own_rate = self._link.connection_bucket()

    def _send_head(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        self.send_header("Date", self.date_time_string())
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(answer.body_bytes))
        self.end_headers()

    def _send_body(self, outcome: Outcome, path: str) -> None:
        counters = self._origin.site.counters
        wire = Wire(
            connection=self.connection,
            link=self._link,
            own_rate=self._own_rate,
            sent=lambda num_bytes: counters.sent(path, num_bytes),
            pause=self._origin.pause,
        )
        deliver(outcome.answer.body, outcome.steps, wire)
