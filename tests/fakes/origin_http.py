"""A web server on loopback that a test scripts: each request goes to a function, and what that returns is sent.

Bodies can be cut off, held back until the test ends, or sent in chunks without a length. Requests are kept in the
order in which they came; `stalled` is set when a body is held back, `dropped` when a client would not take one.
`serve` makes the function of an ordinary file server with ranges, ETags and 404s.
"""

import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TRICKLED_BYTES = 500


@dataclass(frozen=True)
class Ask:
    """A request. `path` is unescaped and has no query; names of headers are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""
    client: tuple[str, int] = ("", 0)


@dataclass
class Reply:
    """What to send. `sent_bytes`: so much of the body only, and then the connection is closed, or, if `stalls`, held
    until the server ends, or, if `trickles`, goes on for some seconds a byte at a time. `chunked`: no
    Content-Length."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent_bytes: int | None = None
    stalls: bool = False
    trickles: bool = False
    chunked: bool = False


Answer = Callable[[Ask], Reply]


@dataclass
class OriginHttp:
    """A server that runs. `url` has no slash at its end; `answer` may be replaced under way."""

    url: str
    answer: Answer
    asked: list[Ask] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)
    dropped: threading.Event = field(default_factory=threading.Event)

    @property
    def connections(self) -> int:
        """How many connections brought the requests."""
        return len({ask.client for ask in self.asked})

    def paths(self) -> list[str]:
        """What was asked for."""
        return [ask.path for ask in self.asked]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    origin: OriginHttp

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """Hand over to the script."""
        path, _mark, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", "0")))
        host, port = self.client_address[:2]
        ask = Ask(self.command, unquote(path), query, headers, body, (str(host), port))
        self.server.origin.asked.append(ask)
        self._send(self.server.origin.answer(ask))

    def do_POST(self) -> None:
        """As GET."""
        self.do_GET()

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif "Content-Length" not in reply.headers:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if reply.chunked:
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(reply.body), reply.body) if reply.body else b"0\r\n\r\n")
            return
        try:
            self.wfile.write(reply.body[: reply.sent_bytes])
            if reply.trickles:
                self._trickle(reply.body[reply.sent_bytes :])
        except OSError:
            self.server.origin.dropped.set()
            raise
        if reply.stalls:
            self.server.origin.stalled.set()
            self.server.origin.ended.wait()
        self.close_connection = reply.stalls or reply.sent_bytes is not None

    def _trickle(self, body: bytes) -> None:
        for byte in body[:TRICKLED_BYTES]:
            if self.server.origin.ended.wait(0.01):
                return
            self.wfile.write(bytes([byte]))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def origin_http(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[OriginHttp]:
    """Run a server for the length of a `with`."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        scheme = "http"
        if tls is not None:
            scheme = "https"
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        origin = server.origin = OriginHttp(f"{scheme}://127.0.0.1:{server.server_address[1]}", answer)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield origin
        finally:
            origin.ended.set()
            server.shutdown()
            thread.join()


def ranged(ask: Ask, data: bytes, headers: Mapping[str, str] | None = None) -> Reply:
    """`data` as an ordinary server gives it: the range, if one is asked for, and all of it if If-Range differs."""
    extra = dict(headers or {})
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", ask.headers.get("range", ""))
    if match is None or ask.headers.get("if-range", extra.get("ETag")) != extra.get("ETag"):
        return Reply(200, data, extra)
    begin, last = int(match[1]), min(int(match[2]), len(data) - 1)
    if begin >= len(data):
        return Reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
    return Reply(206, data[begin : last + 1], {**extra, "Content-Range": f"bytes {begin}-{last}/{len(data)}"})


def serve(files: Mapping[str, bytes], etags: Mapping[str, str] | None = None) -> Answer:
    """A file server: `files` by path with a leading slash; each has the ETag that `etags` gives it."""

    def answer(ask: Ask) -> Reply:
        if ask.path not in files:
            return Reply(404, b"not here")
        etag = (etags or {}).get(ask.path)
        return ranged(ask, files[ask.path], {"ETag": etag} if etag else None)

    return answer
