"""headrace_server.bench.http_reply: stamps and framing, for any way of cutting bytes."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from headrace_server.bench.http_reply import is_whole, parse_head, parse_reply
from tests.unit.headrace_server.bench_support import SSE_HEAD, chunk, whole


def cut(whole: bytes, data: st.DataObject) -> list[bytes]:
    """Pieces of at least one byte."""
    places = data.draw(st.lists(st.integers(1, len(whole) - 1), unique=True, max_size=12).map(sorted))
    return [whole[start:end] for start, end in pairwise([0, *places, len(whole)])]


def body_bytes(begun: bytes) -> bytes:
    """The body as far as a chunked reply has come, by a slow way of its own: byte after byte."""
    rest = begun.partition(b"\r\n\r\n")[2]
    body = b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body


@given(st.data())
def test_an_event_has_the_stamp_of_the_read_that_completed_it(data: st.DataObject) -> None:
    """However the body is cut into chunks and the bytes into reads: stamp n means that read n brought the last byte."""
    events = [b"data: %d\n\n" % number for number in range(4)]
    chunks = [chunk(part) for part in cut(b"".join(events), data)]
    reads = cut(SSE_HEAD + b"".join(chunks) + chunk(b""), data)
    stamps = [float(number) for number in range(len(reads))]

    reply = parse_reply(reads, stamps)

    assert [event.data for event in reply.events()] == [b"0", b"1", b"2", b"3"]
    for number, event in enumerate(reply.events(), start=1):
        come = [body_bytes(b"".join(reads[: stamp + 1])) for stamp in range(len(reads))]
        assert event.at == next(n for n, body in enumerate(come) if body.startswith(b"".join(events[:number])))
    assert reply.ended_at == stamps[-1]


def test_events_that_came_in_one_read_have_one_stamp() -> None:
    two = chunk(b"data: 1\n\ndata: 2\n\n")
    reply = parse_reply([SSE_HEAD, two, chunk(b"data: 3\n\n"), chunk(b"")], [1.0, 2.0, 3.0, 4.0])
    assert [event.at for event in reply.events()] == [2.0, 2.0, 3.0]


@given(st.data())
def test_a_reply_is_whole_with_its_last_byte_and_not_before(data: st.DataObject) -> None:
    body = data.draw(st.binary(max_size=40))
    raw = data.draw(st.sampled_from([whole(body), SSE_HEAD + (chunk(body) if body else b"") + chunk(b"")]))
    head = parse_head(raw)
    assert head is not None
    assert is_whole(raw, head)
    for end in range(head.end, len(raw)):
        assert not is_whole(raw[:end], head)


def test_an_unfinished_last_event_is_not_an_event() -> None:
    reply = parse_reply([SSE_HEAD, chunk(b"data: 1\n\ndata: 2\n"), chunk(b"")], [1.0, 2.0, 3.0])
    assert [event.data for event in reply.events()] == [b"1"]
