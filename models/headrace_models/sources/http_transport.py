"""HTTP for sources: closed ranges of files that must stay the same, and small documents.

    transport = HttpTransport(options, authorizer=...)      # http_auth says how credentials are given and renewed
    transport.describe(url)                                  → Description: size, ETag, Last-Modified
    with transport.open_range(url, begin, end, Expected(...)) as body: ...
    transport.get(url, max_bytes=...), .get_json(...), .get_bytes(...), .post_form(...)
    transport.send(Request(...), max_bytes=...)              whatever else: who pushes judges the answers

Callable from many threads. It never tries again by itself, but once with credentials that a 401 renewed. Redirects
are followed here, at most MAX_REDIRECTS: credentials go to the origin of the caller's URL only, and not to it either
once somebody else has led back there. Where an answer was found is remembered while that works, so that a range costs
one round trip; presigned addresses expire, and then the original is asked again. Messages have no queries in them.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from headrace_models.errors import ModelError, SourceUnavailable, SourceUnusable
from headrace_models.sources.base import Body, SourceOptions
from headrace_models.sources.http_answers import (
    Answer,
    Description,
    Examine,
    Expected,
    check_answer,
    check_document,
    describe_answer,
)
from headrace_models.sources.http_auth import Authorizer, NoCredentials
from headrace_models.sources.http_body import HttpBody, drain, read_whole
from headrace_models.sources.http_connections import HttpConnections, Reply, Request
from headrace_models.sources.web_addresses import origin_of, redirect_target, shown

MAX_REDIRECTS = 5

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What presigned addresses answer when they are too old; 400 is Google's.
_EXPIRED = _REDIRECTS | {400, 401, 403, 404, 410}
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "headrace"}
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})


@dataclass(frozen=True, slots=True)
class Document:
    """A small answer, read to its end. `url` is where it was found, after redirects; case does not matter in the names
    of `headers`."""

    url: str
    headers: Mapping[str, str]
    data: bytes

    def json(self) -> object:
        """The document as JSON; raises SourceUnusable."""
        try:
            document: object = json.loads(self.data)
        except (ValueError, RecursionError) as error:
            raise SourceUnusable(f"{shown(self.url)} gave no JSON") from error
        return document


@dataclass(frozen=True, slots=True)
class _Place:
    """Where to ask. `at_home`: nobody but the origin of the caller's URL chose it, so credentials may go there."""

    url: str
    at_home: bool = True


def _ignore(_answer: Answer) -> None:
    """Examine nothing."""


class HttpTransport:
    """See the module. `examine` everywhere: called with the answer of each redirect and with the last one, before that
    is judged; it may raise ModelError to say it better."""

    def __init__(self, options: SourceOptions, *, authorizer: Authorizer | None = None) -> None:
        self._connections = HttpConnections(options)
        self._authorizer = authorizer or NoCredentials()
        # Threads get, set and remove single entries, which is atomic.
        self._places: dict[str, _Place] = {}

    def describe(self, url: str, *, examine: Examine = _ignore) -> Description:
        """Size and validators of a file, from a request for its first byte: presigned addresses refuse HEAD.

        Raises what `Source.read` raises; SourceUnusable where the size is not said.
        """
        with self._exchange(Request(url, {**_HEADERS, "Range": "bytes=0-0"}), examine) as reply:
            description = describe_answer(reply.answer)
            drain(reply.response)
        return description

    @contextmanager
    def open_range(
        self, url: str, begin: int, end: int, expected: Expected, *, examine: Examine = _ignore
    ) -> Iterator[Body]:
        """Bytes `begin` to `end` (not included) of the file at `url`, at least one; the whole file where the server
        ignores ranges.

        Raises what `Source.read` raises; the body raises what `Body.read` raises, and SourceChanged when it is longer
        than `expected`.
        """
        if not 0 <= begin < end <= expected.size_bytes:
            raise ValueError(f"no range of a file of {expected.size_bytes} bytes: {begin} to {end}")
        headers = {**_HEADERS, "Range": f"bytes={begin}-{end - 1}"}
        if expected.etag is not None:
            headers["If-Range"] = expected.etag
        with self._exchange(Request(url, headers), examine) as reply:
            yield HttpBody(reply.response, url, *check_answer(reply.answer, begin, end, expected))

    def get(
        self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None, examine: Examine = _ignore
    ) -> Document:
        """A whole document. `headers` hold no credentials: those come from the authorizer.

        Raises what `Source.read` raises; SourceUnusable for more than `max_bytes`.
        """
        return self._document(Request(url, {**_HEADERS, **(headers or {})}), max_bytes, examine)

    def get_bytes(self, url: str, *, max_bytes: int) -> bytes:
        """The bytes of a document; see `get`."""
        return self.get(url, max_bytes=max_bytes).data

    def get_json(self, url: str, *, max_bytes: int) -> object:
        """A JSON document; see `get`. Raises SourceUnusable for anything else."""
        return self.get(url, max_bytes=max_bytes, headers={"Accept": "application/json"}).json()

    def post_form(self, url: str, fields: Mapping[str, str], *, max_bytes: int) -> Document:
        """The answer to a form, for token services; redirects are refused. See `get`."""
        headers = {**_HEADERS, "Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        return self._document(Request(url, headers, "POST", urlencode(fields).encode()), max_bytes, _ignore)

    def send(self, request: Request, *, max_bytes: int) -> tuple[Answer, bytes]:
        """Any request and its answer, whatever the status, with its body; only redirects of a GET are followed.

        What the request's body raises is passed on. Raises SourceUnavailable; SourceUnusable for more than `max_bytes`.
        """
        with self._exchange(replace(request, headers={**_HEADERS, **request.headers}), _ignore) as reply:
            return reply.answer, read_whole(reply.response, reply.answer.url, max_bytes)

    def close(self) -> None:
        """Close all connections; reads under way fail with SourceUnavailable."""
        self._connections.close()

    def _document(self, request: Request, max_bytes: int, examine: Examine) -> Document:
        with self._exchange(request, examine) as reply:
            answer = reply.answer
            check_document(answer, max_bytes)
            return Document(answer.url, answer.headers, read_whole(reply.response, answer.url, max_bytes))

    @contextmanager
    def _exchange(self, request: Request, examine: Examine) -> Iterator[Reply]:
        """The last answer to `request`, which is done with at the end."""
        reply = self._from_remembered(request) or self._from_origin(request, examine)
        try:
            examine(reply.answer)
            yield reply
        finally:
            self._connections.finish(reply)

    def _from_remembered(self, request: Request) -> Reply | None:
        """The answer from where it was found before; None where there is no such place, or it works no longer."""
        place = self._places.get(request.url)
        if place is None:
            return None
        try:
            reply = self._send(place, request)
        except SourceUnavailable:
            self._places.pop(request.url, None)
            raise
        if reply.answer.status in _EXPIRED:
            self._places.pop(request.url, None)
            self._connections.finish(reply)
            return None
        if reply.answer.status not in {200, 206}:  # the next question goes where another place may be named
            self._places.pop(request.url, None)
        return reply

    def _from_origin(self, request: Request, examine: Examine) -> Reply:
        place = _Place(request.url)
        for _hop in range(MAX_REDIRECTS + 1):
            reply = self._send(place, request)
            if reply.answer.status not in _REDIRECTS or request.method != "GET":
                if place.url != request.url and reply.answer.status in {200, 206}:
                    self._places[request.url] = place
                return reply
            place = self._next_place(place, request, reply, examine)
        raise SourceUnusable(f"{shown(request.url)} redirects more than {MAX_REDIRECTS} times")

    def _next_place(self, place: _Place, request: Request, reply: Reply, examine: Examine) -> _Place:
        try:
            examine(reply.answer)
            target = redirect_target(place.url, reply.answer.headers.get("Location"))
        finally:
            self._connections.finish(reply)
        return _Place(target, place.at_home and origin_of(target) == origin_of(request.url))

    def _send(self, place: _Place, request: Request) -> Reply:
        if not place.at_home:
            headers = {name: value for name, value in request.headers.items() if name.lower() not in _SECRET_HEADERS}
            return self._connections.send(replace(request, url=place.url, headers=headers))
        sent = self._authorizer.headers(place.url)
        reply = self._connections.send(replace(request, url=place.url, headers={**request.headers, **sent}))
        if reply.answer.status == 401 and self._is_renewed(place, reply, sent):
            self._connections.finish(reply)
            renewed = self._authorizer.headers(place.url)
            reply = self._connections.send(replace(request, url=place.url, headers={**request.headers, **renewed}))
        return reply

    def _is_renewed(self, place: _Place, reply: Reply, sent: Mapping[str, str]) -> bool:
        challenges = tuple(reply.response.headers.getlist("WWW-Authenticate"))
        try:
            return self._authorizer.renew(place.url, challenges, sent)
        except ModelError:
            self._connections.finish(reply)
            raise
