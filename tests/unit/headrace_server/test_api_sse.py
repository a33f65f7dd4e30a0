"""Streams: what is sent when, and that each ends in exactly one way."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from headrace_server.api.sse import KEEP_ALIVE, SseResponse, Work, comment_frame
from headrace_server.domain import EventStream, StreamReply
from headrace_server.errors import ClientGone, EngineDown, EngineFault
from tests.fakes.engine import DONE, FakeStream, frame

pytestmark = pytest.mark.timeout(30)

LONG, SHORT = 60.0, 0.001


class Connection:
    """A client: what it was sent, whether it reads, and when it leaves."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.leaves = asyncio.Event()
        self.got = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self.got.set()
        await self.reads.wait()

    @property
    def pieces(self) -> list[bytes]:
        """The bodies that were sent; the headers must have gone first and the end, if any, last."""
        assert [message["type"] for message in self.sent[:1]] == ["http.response.start"]
        return [message["body"] for message in self.sent[1:] if message["body"]]

    @property
    def is_complete(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False


def giving(stream: EventStream) -> Work:
    """The work of a request that is answered with this stream."""

    async def work() -> StreamReply:
        return StreamReply(stream)

    return work


def answering(connection: Connection, stream: FakeStream, *, hold_seconds: float = LONG) -> asyncio.Task[None]:
    response = SseResponse(giving(stream), hold_seconds=hold_seconds)
    return asyncio.create_task(response({"type": "http"}, connection.receive, connection.send))


def error_of(piece: bytes) -> dict[str, object]:
    assert piece.startswith(b"data: ")
    assert piece.endswith(b"\n\n")
    assert piece.count(b"\n") == 2
    return dict(json.loads(piece.removeprefix(b"data: "))["error"])


async def test_nothing_is_sent_before_the_first_event_and_every_event_as_it_comes() -> None:
    connection, stream = Connection(), FakeStream()
    answer = answering(connection, stream)
    await stream.asked.wait()
    assert connection.sent == []
    for number, event in enumerate([frame("a"), frame("b"), DONE], start=1):
        stream.send(event)
        while len(connection.sent) <= number:
            connection.got.clear()
            await connection.got.wait()
        assert connection.pieces[-1] == event
    stream.end()
    await answer
    assert connection.is_complete
    assert (stream.closed.is_set(), stream.was_aborted) == (True, False)


async def test_the_headers_say_event_stream_without_length_cache_or_buffering() -> None:
    connection, stream = Connection(), FakeStream(frame("a"))
    stream.end()
    await answering(connection, stream)
    headers = dict(connection.sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-accel-buffering"] == b"no"
    assert b"content-length" not in headers


async def test_a_failure_before_the_first_event_is_raised_with_nothing_sent() -> None:
    connection, stream = Connection(), FakeStream()
    stream.fail(EngineDown("gone"))
    with pytest.raises(EngineDown, match="gone"):
        await answering(connection, stream)
    assert connection.sent == []
    assert stream.closed.is_set()


async def test_a_defect_before_the_first_event_is_raised_too() -> None:
    connection, stream = Connection(), FakeStream()
    stream.fail(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await answering(connection, stream)
    assert connection.sent == []


@pytest.mark.parametrize(
    ("failure", "message", "code"),
    [
        (EngineFault("it broke", code="broke"), "it broke", "broke"),
        (ZeroDivisionError("secret"), "internal error", "internal_error"),
    ],
)
async def test_a_failure_in_the_middle_ends_in_one_error_event(failure: Exception, message: str, code: str) -> None:
    connection, stream = Connection(), FakeStream(frame("a"))
    stream.fail(failure)
    await answering(connection, stream)
    assert connection.pieces[0] == frame("a")
    assert len(connection.pieces) == 2
    error = error_of(connection.pieces[1])
    assert (error["message"], error["code"]) == (message, code)
    assert connection.is_complete


async def test_comments_keep_a_slow_stream_alive_and_its_events_follow() -> None:
    connection, stream = Connection(), FakeStream()
    answer = answering(connection, stream, hold_seconds=SHORT)
    while connection.sent[1:].count({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True}) < 2:
        connection.got.clear()
        await connection.got.wait()
    stream.send(frame("a"))
    stream.send(DONE)
    stream.end()
    await answer
    assert [piece for piece in connection.pieces if piece != KEEP_ALIVE] == [frame("a"), DONE]
    assert connection.is_complete


async def test_what_a_comment_says_is_asked_each_time() -> None:
    connection, stream = Connection(), FakeStream()
    texts = iter(range(1000))
    response = SseResponse(giving(stream), hold_seconds=SHORT, comment=lambda: comment_frame(f"wait {next(texts)}"))
    answer = asyncio.create_task(response({"type": "http"}, connection.receive, connection.send))
    while len(connection.sent) < 4:
        connection.got.clear()
        await connection.got.wait()
    stream.end()
    await answer
    assert connection.pieces[:3] == [b": wait 0\n\n", b": wait 1\n\n", b": wait 2\n\n"]


@pytest.mark.parametrize("text", ["a\nb", "a\r\ndata: x", "\x1b[31m", "ü", "\ud800", "a\u2028b", "a\0b"])
def test_a_comment_is_one_line_of_ascii_whatever_it_is_made_of(text: str) -> None:
    frame = comment_frame(text)
    assert frame.startswith(b": ")
    assert frame.endswith(b"\n\n")
    assert all(0x20 <= byte < 0x7F for byte in frame[:-2])


@pytest.mark.parametrize(
    ("failure", "message"), [(EngineDown("gone"), "gone"), (ZeroDivisionError("secret"), "internal error")]
)
async def test_a_failure_after_a_comment_ends_in_one_error_event(failure: Exception, message: str) -> None:
    connection, stream = Connection(), FakeStream()
    answer = answering(connection, stream, hold_seconds=SHORT)
    await connection.got.wait()
    stream.fail(failure)
    await answer
    assert error_of(connection.pieces[-1])["message"] == message
    assert set(connection.pieces[:-1]) == {KEEP_ALIVE}
    assert connection.is_complete


class _Stubborn:
    """A stream that has more to say after it failed."""

    def __init__(self, *, good_events: int) -> None:
        self._good_events = good_events
        self._failed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._good_events:
            self._good_events -= 1
            return frame("a")
        if self._failed:
            return DONE
        self._failed = True
        await asyncio.sleep(SHORT * 5)
        raise EngineFault("no")

    async def aclose(self) -> None:
        self._good_events = 0


@pytest.mark.parametrize("good_events", [0, 1])
async def test_nothing_is_asked_of_a_stream_after_its_failure(good_events: int) -> None:
    connection = Connection()
    response = SseResponse(giving(_Stubborn(good_events=good_events)), hold_seconds=SHORT)
    await response({"type": "http"}, connection.receive, connection.send)
    assert DONE not in connection.pieces
    assert error_of(connection.pieces[-1])["message"] == "no"


async def test_a_stream_without_events_ends_in_an_empty_answer() -> None:
    connection, stream = Connection(), FakeStream()
    stream.end()
    await answering(connection, stream)
    assert connection.pieces == []
    assert connection.is_complete


@pytest.mark.parametrize("hold_seconds", [LONG, SHORT])
async def test_a_client_that_leaves_before_the_first_event_aborts_the_stream(hold_seconds: float) -> None:
    connection, stream = Connection(), FakeStream()
    answer = answering(connection, stream, hold_seconds=hold_seconds)
    await stream.asked.wait()
    connection.leaves.set()
    with pytest.raises(ClientGone):
        await answer
    assert (stream.closed.is_set(), stream.was_aborted) == (True, True)


async def test_a_client_that_leaves_in_the_middle_aborts_the_stream() -> None:
    connection, stream = Connection(), FakeStream(frame("a"))
    answer = answering(connection, stream)
    await connection.got.wait()
    connection.leaves.set()
    with pytest.raises(ClientGone):
        await answer
    assert (stream.closed.is_set(), stream.was_aborted) == (True, True)


async def test_a_client_that_stops_reading_and_then_leaves_aborts_the_stream() -> None:
    connection, stream = Connection(), FakeStream(frame("a"))
    connection.reads.clear()
    answer = answering(connection, stream)
    await connection.got.wait()
    assert not stream.asked.is_set()
    connection.leaves.set()
    with pytest.raises(ClientGone):
        await answer
    assert stream.was_aborted


async def test_a_client_that_left_before_the_answer_began_aborts_a_stream_that_was_never_read() -> None:
    connection, stream = Connection(), FakeStream()
    connection.leaves.set()
    with pytest.raises(ClientGone):
        await answering(connection, stream)
    assert stream.was_aborted


@pytest.mark.parametrize("num_events", [0, 1])
async def test_cancelling_the_answer_aborts_the_stream(num_events: int) -> None:
    connection, stream = Connection(), FakeStream(*[frame("a")] * num_events)
    answer = answering(connection, stream)
    await (connection.got if num_events else stream.asked).wait()
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert stream.was_aborted


async def test_anthropics_clients_get_a_named_and_typed_error_event() -> None:
    connection, stream = Connection(), FakeStream(frame("one"))
    stream.fail(EngineDown("it stopped"))
    response = SseResponse(giving(stream), hold_seconds=LONG, named_errors=True)
    await response({"type": "http"}, connection.receive, connection.send)
    name, data, *rest = connection.pieces[-1].decode().splitlines()
    assert (name, rest) == ("event: error", [""])
    event = json.loads(data.removeprefix("data: "))
    assert event["type"] == "error"
    assert event["error"]["message"] == "it stopped"
