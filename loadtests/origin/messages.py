"""Requests and answers, as the protocols see them: no sockets, no faults, no rate.

A protocol gets a `Request` and returns an `Answer`; the body of one is bytes in memory or a part of a file, which is
sent by the kernel. An answer to HEAD is that to GET: whoever sends it leaves out the body.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, unquote

_ABSOLUTE = re.compile(r"^https?://[^/?]*", re.IGNORECASE)

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """`path` is decoded and without the query; `host` is the Host header, with the port."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def host(self) -> str:
        """The host and port that the client meant."""
        return self.headers.get("host", "")

    def header(self, name: str) -> str:
        """A header by its lower-case name; empty if it did not come."""
        return self.headers.get(name, "")

    def without(self, name: str) -> "Request":
        """The same without a header."""
        return replace(self, headers={key: value for key, value in self.headers.items() if key != name})

    def below(self, prefix: str) -> "Request":
        """The same with `prefix` taken from the path."""
        return replace(self, path=self.path.removeprefix(prefix))


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes `begin` to `end` (not included) of a file."""

    location: Path
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` are without Content-Length, which follows from the body."""

    status: int
    headers: Headers = ()
    body: bytes | FilePart = b""

    @property
    def body_bytes(self) -> int:
        """How long the body is."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.end - self.body.begin


class Service(Protocol):
    """One protocol over the shelf of models; called from many threads."""

    def answer(self, request: Request) -> Answer:
        """The answer; a request that makes no sense gets an error of the protocol's own kind."""
        ...


def read_request(method: str, target: str, headers: Message, body: bytes) -> Request:
    """A request from its first line and headers; the last one of several with the same name counts.

    The target may be a whole address, as RFC 9112 allows and AWS's C++ client sends it.
    """
    path, _, query = _ABSOLUTE.sub("", target).partition("?")
    fields = {name.lower(): value for name, value in headers.items()}
    return Request(method, unquote(path), dict(parse_qsl(query, keep_blank_values=True)), fields, body)


def plain(status: int, text: str = "", headers: Headers = ()) -> Answer:
    """An answer in plain text; without `text` the status says it."""
    data = f"{text or HTTPStatus(status).phrase}\n".encode()
    return Answer(status, (("Content-Type", "text/plain"), *headers), data)
