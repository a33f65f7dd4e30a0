"""What the bytes of an HTTP/1.1 reply mean, worked out after they came (RFC 9112).

Each read has a time stamp, and each server-sent event gets the stamp of the read that completed it.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

HEAD_END = b"\r\n\r\n"
_EVENT_END = re.compile(rb"\r?\n\r?\n")


class ExchangeFailed(Exception):
    """No whole reply: no connection, one that was cut or took too long, or what came is not HTTP."""


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event: its data, and when its last byte had come."""

    data: bytes
    at: float


@dataclass(frozen=True, slots=True)
class Span:
    """`raw[start:end]` are bytes of the body; the first of them is number `offset` of the body."""

    start: int
    end: int
    offset: int


@dataclass(frozen=True, slots=True)
class Head:
    """Status, header fields (names in lower case), and where the body begins in the raw bytes."""

    status: int
    fields: Mapping[bytes, bytes]
    end: int

    @property
    def is_chunked(self) -> bool:
        return self.fields.get(b"transfer-encoding", b"").lower() == b"chunked"

    @property
    def body_bytes(self) -> int | None:
        """The announced length of a body that is not chunked; None: it ends where the connection ends."""
        length = self.fields.get(b"content-length")
        if length is None:
            return None
        if not length.isdigit():
            raise ExchangeFailed("the reply's length cannot be read")
        return int(length)

    @property
    def keeps_open(self) -> bool:
        """Whether another request may follow on this connection."""
        framed = self.is_chunked or self.body_bytes is not None
        return framed and self.fields.get(b"connection", b"").lower() != b"close"


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply.

    Attributes:
        status: HTTP status.
        body: without transfer coding.
        ended_at: when the last byte came.
        spans, read_ends, read_stamps: where the body's bytes were, where each read ended and when it came.
    """

    status: int
    body: bytes
    ended_at: float
    spans: tuple[Span, ...]
    read_ends: tuple[int, ...]
    read_stamps: tuple[float, ...]

    def events(self) -> Iterator[Event]:
        """The body's events in order; comments (keep-alives) are left out, an unfinished last one too."""
        start = 0
        for boundary in _EVENT_END.finditer(self.body):
            lines = self.body[start : boundary.start()].splitlines()
            start = boundary.end()
            data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
            if data:
                yield Event(b"\n".join(data), self._arrival(boundary.end() - 1))

    def _arrival(self, offset: int) -> float:
        """When byte number `offset` of the body came."""
        span = self.spans[bisect_left(self.spans, offset + 1, key=lambda span: span.offset) - 1]
        raw_end = span.start + offset - span.offset + 1
        return self.read_stamps[bisect_left(self.read_ends, raw_end)]


def parse_head(raw: bytes) -> Head | None:
    """The head at the beginning of `raw`; None while it is not whole.

    Raises:
        ExchangeFailed: it is not HTTP.
    """
    end = raw.find(HEAD_END)
    if end < 0:
        return None
    first, *rest = raw[:end].split(b"\r\n")
    words = first.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ExchangeFailed("the reply is not HTTP")
    pairs = (line.partition(b":") for line in rest)
    fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Head(int(words[1]), fields, end + len(HEAD_END))


def is_whole(raw: bytes, head: Head) -> bool:
    """Whether nothing of the reply is missing; never true for one that ends where its connection ends.

    Raises:
        ExchangeFailed: its framing cannot be read, or there is more than the reply.
    """
    if head.is_chunked:
        *_, end = _chunk_ends(raw, head.end)
        return end is not None
    length = head.body_bytes
    if length is not None and len(raw) - head.end > length:
        raise ExchangeFailed("the server sent more than its reply")
    return length is not None and len(raw) - head.end == length


def parse_reply(reads: Sequence[bytes], stamps: Sequence[float]) -> Reply:
    """What the bytes of a whole reply mean; `stamps` says when each read came.

    Raises:
        ExchangeFailed: it was cut off or is not HTTP.
    """
    raw = b"".join(reads)
    head = parse_head(raw)
    if head is None:
        raise ExchangeFailed("the server closed the connection without a reply")
    spans = tuple(_spans(raw, head))
    return Reply(
        status=head.status,
        body=b"".join(raw[span.start : span.end] for span in spans),
        ended_at=stamps[-1],
        spans=spans,
        read_ends=tuple(accumulate(len(read) for read in reads)),
        read_stamps=tuple(stamps),
    )


def _spans(raw: bytes, head: Head) -> Iterator[Span]:
    if head.is_chunked:
        yield from _chunks(raw, head.end)
        return
    length, come = head.body_bytes, len(raw) - head.end
    if length is not None and length != come:
        raise ExchangeFailed(f"the reply was cut off: {come} of {length} bytes")
    yield Span(head.end, len(raw), 0)


def _chunks(raw: bytes, place: int) -> Iterator[Span]:
    """The parts of a chunked body (RFC 9112, 7.1); trailers are not looked at."""
    offset = 0
    for end in _chunk_ends(raw, place):
        if end is None:
            raise ExchangeFailed("the reply was cut off")
        start = raw.find(b"\r\n", place) + 2
        if end > start:
            yield Span(start, end, offset)
        offset += end - start
        place = end + 2


def _chunk_ends(raw: bytes, place: int) -> Iterator[int | None]:
    """Where the data of each chunk ends, the empty last one included; None in its place where bytes are missing."""
    size: int | None = 1
    while size:
        line_end = raw.find(b"\r\n", place)
        start = line_end + 2
        try:
            size = int(raw[place:line_end].partition(b";")[0], 16) if line_end >= 0 else None
        except ValueError as error:
            raise ExchangeFailed("the reply's chunks cannot be read") from error
        if size is None or len(raw) < start + size + 2:
            yield None
            return
        yield start + size
        place = start + size + 2
