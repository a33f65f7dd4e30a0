"""Connections: one request, one answer, no redirects. Pools, proxies, TLS, time limits, and what errors of these mean.

Answers whose body is still to come are kept in a set, so that `close` from another thread ends the reads under way
instead of waiting for them. TLS checks certificates always, against the system's authorities or SSL_CERT_FILE's.
Whether a host may be spoken to in the clear is checked for every request. Urllib3 is kept from logging addresses.
"""

import contextlib
import logging
import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse
from urllib3.util import Timeout, make_headers

from headrace_models.errors import SourceError, SourceUnavailable, SourceUnusable
from headrace_models.sources.base import SourceOptions
from headrace_models.sources.http_answers import Answer
from headrace_models.sources.http_body import drain
from headrace_models.sources.proxies import Proxy, proxy_for
from headrace_models.sources.web_addresses import check_clear, origin_of

# More than any source asks for at once, so that no connection is thrown away while it could be used again.
_POOLED_CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class Request:
    """What to send to `url`. A body that comes in blocks has a Content-Length among the headers, and begins anew each
    time it is iterated, since a 401 may have it sent twice."""

    url: str
    headers: Mapping[str, str]
    method: str = "GET"
    body: bytes | Iterable[bytes] | None = None


@dataclass(eq=False, slots=True)
class Reply:
    """An answer whose body is still to come; whoever got it calls `HttpConnections.finish`."""

    answer: Answer
    response: BaseHTTPResponse = field(repr=False)


class HttpConnections:
    """Pools of connections, callable from many threads. Close it."""

    def __init__(self, options: SourceOptions) -> None:
        self._options = options
        self._pools: dict[tuple[str, Proxy | None], urllib3.PoolManager] = {}
        self._open: set[Reply] = set()
        self._lock = threading.Lock()
        self._closed = False
        _keep_addresses_out_of_logs()

    def send(self, request: Request) -> Reply:
        """Ask and wait for the status and the headers. Raises SourceUnavailable, SourceUnusable."""
        check_clear(request.url, self._options.insecure_hosts)
        pool = self._pool(request.url)
        try:
            response = pool.request(
                request.method,
                request.url,
                body=request.body,
                headers=dict(request.headers),
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
            )
        except HTTPError as error:
            raise _translated(error, request.url) from error
        return self._opened(Reply(Answer(request.url, response.status, response.headers), response))

    def finish(self, reply: Reply) -> None:
        """Done with an answer: its connection is used again if the body was read to the end, and closed otherwise.

        Bodies of redirects and refusals that are small are read first: that costs less than another connection.
        """
        if reply.answer.status not in {200, 206}:
            drain(reply.response)
        with self._lock:
            self._open.discard(reply)
        reply.response.close()
        reply.response.release_conn()

    def close(self) -> None:
        """Close all connections; reads under way fail, and what is asked from now on is refused."""
        with self._lock:
            self._closed = True
            replies, pools = tuple(self._open), tuple(self._pools.values())
        for reply in replies:
            # RuntimeError: read to its end since; OSError: the other side was faster.
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                reply.response.shutdown()
        for pool in pools:
            pool.clear()

    def _opened(self, reply: Reply) -> Reply:
        with self._lock:
            self._open.add(reply)
            closed = self._closed
        if closed:
            self.finish(reply)
            raise SourceUnavailable("the source is closed")
        return reply

    def _pool(self, url: str) -> urllib3.PoolManager:
        scheme, proxy = origin_of(url).scheme, proxy_for(url, self._options.environ)
        with self._lock:
            if self._closed:
                raise SourceUnavailable("the source is closed")
            if (scheme, proxy) not in self._pools:
                self._pools[scheme, proxy] = self._make_pool(scheme, proxy)
            return self._pools[scheme, proxy]

    def _make_pool(self, scheme: str, proxy: Proxy | None) -> urllib3.PoolManager:
        timeout = Timeout(connect=self._options.connect_seconds, read=self._options.stall_seconds)
        context = self._tls_context() if scheme == "https" else None
        if proxy is None:
            return urllib3.PoolManager(maxsize=_POOLED_CONNECTIONS, timeout=timeout, ssl_context=context)
        headers = make_headers(proxy_basic_auth=proxy.credentials) if proxy.credentials else None
        return urllib3.ProxyManager(
            proxy.url, maxsize=_POOLED_CONNECTIONS, proxy_headers=headers, timeout=timeout, ssl_context=context
        )

    def _tls_context(self) -> ssl.SSLContext:
        authorities = self._options.environ.get("SSL_CERT_FILE") or None
        try:
            return ssl.create_default_context(cafile=authorities)
        except OSError as error:
            raise SourceUnusable(f"SSL_CERT_FILE names no file of certificates: {authorities}") from error


def _keep_addresses_out_of_logs() -> None:
    """Urllib3 logs whole URLs, queries of presigned ones included, at DEBUG and, with odd headers, at WARNING."""
    logger = logging.getLogger("urllib3.connectionpool")
    logger.setLevel(max(logger.level, logging.ERROR))


def _translated(error: HTTPError, url: str) -> SourceError:
    """What the user is told; texts of urllib3's own hold addresses, and names of its classes."""
    host = origin_of(url).host
    match error:
        case SSLError(args=(ssl.SSLCertVerificationError(verify_message=str(reason)), *_)):
            return SourceUnusable(f"the certificate of {host} is refused ({reason}); own authorities: SSL_CERT_FILE")
        case LocationValueError():
            return SourceUnusable(f"not a host: {host[:100]!r}")
        case ProxyError():
            return SourceUnavailable(f"the proxy for {host} cannot be reached, or does not let us through")
        case _:
            return SourceUnavailable(f"{host} {_what_happened(error)}")


def _what_happened(error: HTTPError) -> str:
    match error:
        case NameResolutionError():
            return "is not known to the name server"
        case NewConnectionError():  # before its parent
            return "cannot be reached"
        case ConnectTimeoutError():
            return "did not take the connection in time"
        case ReadTimeoutError():
            return "did not answer in time"
        case SSLError():
            return "does not speak TLS that we understand"
        case _:
            return "broke off the connection"
