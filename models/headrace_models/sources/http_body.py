"""The body of an HTTP answer: read as it comes, checked for its length.

A connection is used again only when its body was read to the end. One that is left early is closed, never drained,
because what is left may be gigabytes; `drain` is for small bodies that nobody wants.
"""

import contextlib
import time
from collections.abc import Iterator

from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse

from headrace_models.errors import SourceChanged, SourceUnavailable, SourceUnusable
from headrace_models.sources.web_addresses import shown

DRAINED_BYTES = 16 << 10
GATHER_SECONDS = 0.5

_BLOCK_BYTES = 64 << 10


class HttpBody:
    """See `base.Body`. `begin` to `end` are the bytes of the file that `response` promised."""

    def __init__(self, response: BaseHTTPResponse, url: str, begin: int, end: int) -> None:
        self._response = response
        self._url = url
        self._begin, self._end, self._position = begin, end, begin

    @property
    def begin(self) -> int:
        """See Body."""
        return self._begin

    @property
    def end(self) -> int:
        """See Body."""
        return self._end

    def read(self, max_bytes: int) -> bytes:
        """See Body. Waits until there are `max_bytes`, or the end; once there are any, no longer than GATHER_SECONDS,
        since whoever reads must see how slowly they come.

        Fewer, larger blocks cost less: a MiB at a time took 0.16 s of CPU a GB on loopback, taken as it comes 0.27 s.
        """
        if self._position == self._end:
            return b""
        data = self._gather(min(max_bytes, self._end - self._position))
        if not data:
            raise SourceUnavailable(f"{shown(self._url)} ended {self._end - self._position} bytes early")
        self._position += len(data)
        if self._position == self._end:
            self._finish()
        return data

    def _gather(self, num_bytes: int) -> bytes:
        until, parts = time.monotonic() + GATHER_SECONDS, bytearray()
        while data := _read_some(self._response, self._url, num_bytes - len(parts)):
            if len(data) == num_bytes:
                return data
            parts += data
            if len(parts) == num_bytes or time.monotonic() >= until:
                break
        return bytes(parts)

    def _finish(self) -> None:
        """Without a Content-Length only the end of the answer says that there is no more. Frees the connection."""
        if _read(self._response, self._url, 1):
            raise SourceChanged(f"{shown(self._url)} is longer than it was")


def read_whole(response: BaseHTTPResponse, url: str, max_bytes: int) -> bytes:
    """All of a small body. Raises SourceUnusable for more than `max_bytes`, SourceUnavailable as `Body.read`."""
    data = bytearray()
    while block := _read(response, url, _BLOCK_BYTES):
        data += block
        if len(data) > max_bytes:
            raise SourceUnusable(f"{shown(url)} is larger than {max_bytes} bytes")
    return bytes(data)


def drain(response: BaseHTTPResponse) -> None:
    """Read to the end what nobody wants, if that is little; the connection can be used again then."""
    left = getattr(response, "length_remaining", None)
    if left is not None and left <= DRAINED_BYTES:
        try:
            response.read(DRAINED_BYTES)
        except (HTTPError, ValueError):  # then the connection is closed
            return


def _read(response: BaseHTTPResponse, url: str, max_bytes: int) -> bytes:
    with _translated(url):
        return response.read(max_bytes)


def _read_some(response: BaseHTTPResponse, url: str, max_bytes: int) -> bytes:
    """What one look at the socket brings, at least a byte unless it is the end."""
    with _translated(url):
        return response.read1(max_bytes)


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except ReadTimeoutError as error:
        raise SourceUnavailable(f"{shown(url)} stalled") from error
    except (HTTPError, ValueError) as error:  # ValueError: the file object was closed under our hands
        raise SourceUnavailable(f"{shown(url)} broke off") from error
