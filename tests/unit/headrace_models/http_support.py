"""What the tests of the HTTP transport share: servers and transports that end with the test, and a file to serve."""

import ssl
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from headrace_models.sources.base import Body, SourceOptions
from headrace_models.sources.http_answers import Expected
from headrace_models.sources.http_auth import Authorizer
from headrace_models.sources.http_transport import HttpTransport
from tests.fakes.origin_http import Answer, OriginHttp, Reply, origin_http, ranged

DATA = bytes(range(256)) * 400
PINNED = Expected(len(DATA), etag='"one"')
SECRET = "X-Amz-Signature=0badcafe"


class Bench:
    """Starts servers and transports; whoever owns `stack` ends them."""

    def __init__(self, stack: ExitStack, spool: Path) -> None:
        self._stack = stack
        self._spool = spool

    def start(self, answer: Answer, tls: ssl.SSLContext | None = None) -> OriginHttp:
        """A server."""
        return self._stack.enter_context(origin_http(answer, tls))

    def connect(
        self,
        authorizer: Authorizer | None = None,
        environ: Mapping[str, str] | None = None,
        insecure_hosts: frozenset[str] = frozenset(),
        stall_seconds: float = 5.0,
    ) -> HttpTransport:
        """A transport."""
        options = SourceOptions(self._spool, insecure_hosts, stall_seconds, 5.0, environ or {})
        transport = HttpTransport(options, authorizer=authorizer)
        self._stack.callback(transport.close)
        return transport


def drained(body: Body) -> bytes:
    """The rest of a body."""
    parts = []
    while data := body.read(10_000):
        parts.append(data)
    return b"".join(parts)


def read(transport: HttpTransport, url: str, begin: int, end: int, expected: Expected = PINNED) -> bytes:
    """A range, from a server that keeps to ranges."""
    with transport.open_range(url, begin, end, expected) as body:
        assert (body.begin, body.end) == (begin, end)
        return drained(body)


def read_any(transport: HttpTransport, url: str) -> bytes:
    """Whatever the server gives when it is asked for the first ten bytes."""
    with transport.open_range(url, 0, 10, PINNED) as body:
        return drained(body)


def file_server(headers: Mapping[str, str] | None = None) -> Answer:
    """DATA, whatever is asked for, with the ETag "one"."""
    return lambda ask: ranged(ask, DATA, headers or {"ETag": '"one"'})


def redirect(to: str, status: int = 302) -> Answer:
    """Leads elsewhere, whatever is asked for."""
    return lambda ask: Reply(status, headers={"Location": to})


def authorizations(origin: OriginHttp) -> list[str | None]:
    """What each request had as its Authorization."""
    return [ask.headers.get("authorization") for ask in origin.asked]
