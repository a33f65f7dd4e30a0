"""The HTTP transport against real servers: ranges, pins, faults, descriptions, documents."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from headrace_models.errors import (
    ModelError,
    ModelNotFound,
    SourceChanged,
    SourceDenied,
    SourceUnavailable,
    SourceUnusable,
)
from headrace_models.sources import http_body
from headrace_models.sources.http_answers import Description, Expected
from headrace_models.sources.http_transport import HttpTransport
from tests.fakes.origin_http import Answer, Ask, Reply, origin_http, ranged, serve
from tests.unit.headrace_models.http_support import DATA, PINNED, SECRET, Bench, drained, file_server, read, read_any


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, tmp_path)


def test_a_range_is_closed_uncompressed_and_pinned_by_the_etag(bench: Bench) -> None:
    origin = bench.start(file_server())
    assert read(bench.connect(), f"{origin.url}/w", 1000, 31000) == DATA[1000:31000]
    headers = origin.asked[0].headers
    assert (headers["range"], headers["accept-encoding"], headers["if-range"]) == (
        "bytes=1000-30999",
        "identity",
        '"one"',
    )


def test_ranges_one_after_the_other_use_one_connection(bench: Bench) -> None:
    origin, transport = bench.start(file_server()), bench.connect()
    for begin in (0, 5000, 90000):
        assert read(transport, f"{origin.url}/w", begin, begin + 5000) == DATA[begin : begin + 5000]
    assert origin.connections == 1


@pytest.mark.parametrize("status", [404, 503, 302])
def test_a_small_refusal_leaves_the_connection_usable(bench: Bench, status: int) -> None:
    origin, transport = bench.start(lambda ask: Reply(status, b"no")), bench.connect()
    for _time in range(2):
        with pytest.raises(ModelError):
            transport.get_bytes(f"{origin.url}/w", max_bytes=10)
    assert origin.connections == 1


def test_a_body_left_early_drops_its_connection(bench: Bench) -> None:
    more_than_buffers_hold = DATA * 400
    origin, transport = bench.start(lambda ask: ranged(ask, more_than_buffers_hold)), bench.connect()
    expected = Expected(len(more_than_buffers_hold))
    with transport.open_range(f"{origin.url}/w", 0, expected.size_bytes, expected) as body:
        assert body.read(10) == DATA[:10]
    assert origin.dropped.wait(5)
    assert read(transport, f"{origin.url}/w", 0, 10, expected) == DATA[:10]
    assert origin.connections == 2


@pytest.mark.parametrize("chunked", [False, True])
def test_a_server_that_ignores_ranges_gives_the_whole_file(bench: Bench, chunked: bool) -> None:
    origin, transport = bench.start(lambda ask: Reply(200, DATA, {"ETag": '"one"'}, chunked=chunked)), bench.connect()
    for _time in range(2):
        with transport.open_range(f"{origin.url}/w", 50, 60, PINNED) as body:
            assert (body.begin, body.end) == (0, len(DATA))
            assert drained(body) == DATA
    assert origin.connections == 1


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(lambda ask: ranged(ask, DATA, {"ETag": '"two"'}), id="another ETag, all of it"),
        pytest.param(
            lambda ask: Reply(206, DATA[:10], {"ETag": '"two"', "Content-Range": f"bytes 0-9/{len(DATA)}"}),
            id="another ETag in spite of If-Range",
        ),
        pytest.param(lambda ask: ranged(ask, DATA), id="no ETag any more"),
        pytest.param(lambda ask: ranged(ask, DATA, {"ETag": 'W/"one"'}), id="a weak ETag now"),
        pytest.param(lambda ask: ranged(ask, DATA + b"x", {"ETag": '"one"'}), id="another size"),
        pytest.param(lambda ask: Reply(200, DATA[:-1], {"ETag": '"one"'}), id="another size, all of it"),
        pytest.param(lambda ask: Reply(412), id="412"),
        pytest.param(lambda ask: Reply(416), id="416"),
    ],
)
def test_a_file_that_is_another_one_now_gives_no_bytes(bench: Bench, reply: Answer) -> None:
    origin = bench.start(reply)
    with pytest.raises(SourceChanged):
        read(bench.connect(), f"{origin.url}/w", 0, 10)


def test_an_etag_that_changes_under_way_ends_the_reading(bench: Bench) -> None:
    origin, transport = bench.start(file_server()), bench.connect()
    read(transport, f"{origin.url}/w", 0, 10)
    origin.answer = file_server({"ETag": '"two"'})
    with pytest.raises(SourceChanged, match="ETag"):
        read(transport, f"{origin.url}/w", 10, 20)


def test_last_modified_pins_where_there_is_no_etag(bench: Bench) -> None:
    origin, transport = bench.start(file_server({"Last-Modified": "Tue, 01 Jul 2025 10:00:00 GMT"})), bench.connect()
    expected = Expected(len(DATA), last_modified="Tue, 01 Jul 2025 10:00:00 GMT")
    assert read(transport, f"{origin.url}/w", 0, 10, expected) == DATA[:10]
    origin.answer = file_server({"Last-Modified": "Tue, 01 Jul 2025 10:00:01 GMT"})
    with pytest.raises(SourceChanged, match="modified"):
        read(transport, f"{origin.url}/w", 0, 10, expected)


def test_a_longer_file_without_a_length_is_noticed_at_its_end(bench: Bench) -> None:
    origin = bench.start(lambda ask: Reply(200, DATA + b"x", {"ETag": '"one"'}, chunked=True))
    with (
        bench.connect().open_range(f"{origin.url}/w", 0, 10, PINNED) as body,
        pytest.raises(SourceChanged, match="longer"),
    ):
        drained(body)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Range": f"bytes 1-10/{len(DATA)}"},
        {"Content-Range": f"bytes 0-8/{len(DATA)}"},
        {"Content-Range": "bytes 0-9/*"},
        {"Content-Range": "0-9"},
        {"Content-Type": "multipart/byteranges; boundary=x"},
        {"Content-Range": f"bytes 0-9/{len(DATA)}", "Content-Encoding": "gzip"},
        {"Content-Range": f"bytes 0-9/{len(DATA)}", "Content-Length": "11"},
    ],
)
def test_other_bytes_than_those_asked_for_are_refused(bench: Bench, headers: dict[str, str]) -> None:
    origin = bench.start(lambda ask: Reply(206, DATA[:10], {"ETag": '"one"', **headers}))
    with pytest.raises(SourceUnusable):
        read(bench.connect(), f"{origin.url}/w", 0, 10)


def test_a_body_that_is_cut_off_can_be_asked_for_again(bench: Bench) -> None:
    def answer(ask: Ask) -> Reply:
        reply = ranged(ask, DATA, {"ETag": '"one"'})
        reply.sent_bytes = 25_000
        return reply

    origin = bench.start(answer)
    with bench.connect().open_range(f"{origin.url}/w", 0, 50_000, PINNED) as body:
        assert body.read(10_000) == DATA[:10_000]
        with pytest.raises(SourceUnavailable):
            drained(body)


@pytest.mark.parametrize("sent_bytes", [0, 100])
def test_a_stall_ends_after_the_stall_time(bench: Bench, sent_bytes: int) -> None:
    origin = bench.start(lambda ask: Reply(200, DATA, {"ETag": '"one"'}, sent_bytes=sent_bytes, stalls=True))
    with pytest.raises(SourceUnavailable, match="stalled|did not answer in time"):
        read_any(bench.connect(stall_seconds=0.2), f"{origin.url}/w")


def test_a_body_that_trickles_is_handed_on_as_it_comes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_body, "GATHER_SECONDS", 0.0)
    origin = bench.start(lambda ask: Reply(200, DATA, {"ETag": '"one"'}, sent_bytes=7, stalls=True))
    with bench.connect(stall_seconds=0.2).open_range(f"{origin.url}/w", 0, 10, PINNED) as body:
        assert body.read(len(DATA)) == DATA[:7]
        with pytest.raises(SourceUnavailable, match="stalled"):
            body.read(len(DATA))


def test_a_server_that_never_answers_stalls_too(bench: Bench) -> None:
    ended = threading.Event()
    origin = bench.start(lambda ask: Reply() if ended.wait(5) else Reply())
    with pytest.raises(SourceUnavailable, match="in time"):
        read_any(bench.connect(stall_seconds=0.2), f"{origin.url}/w")
    ended.set()


def test_closing_ends_a_read_under_way(bench: Bench) -> None:
    origin = bench.start(lambda ask: Reply(200, DATA, {"ETag": '"one"'}, sent_bytes=5, stalls=True))
    transport = bench.connect(stall_seconds=30.0)
    errors: list[Exception] = []

    def reader() -> None:
        try:
            read_any(transport, f"{origin.url}/w")
        except SourceUnavailable as error:
            errors.append(error)

    thread = threading.Thread(target=reader)
    with transport.open_range(f"{origin.url}/w", 0, 10, PINNED) as body:
        thread.start()
        assert origin.stalled.wait(5)
        transport.close()
        with pytest.raises(SourceUnavailable, match="broke off"):
            drained(body)
    thread.join(5)
    assert len(errors) == 1
    with pytest.raises(SourceUnavailable, match="closed"):
        read_any(transport, f"{origin.url}/w")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, SourceUnusable),
        (401, SourceDenied),
        (403, SourceDenied),
        (404, ModelNotFound),
        (410, ModelNotFound),
        (407, SourceDenied),
        (408, SourceUnavailable),
        (429, SourceUnavailable),
        (500, SourceUnavailable),
        (503, SourceUnavailable),
        (204, SourceUnusable),
        (304, SourceUnusable),
        (418, SourceUnusable),
    ],
)
def test_each_status_means_what_the_caller_should_do(bench: Bench, status: int, error: type[ModelError]) -> None:
    origin = bench.start(lambda ask: Reply(status))
    for attempt in (read_any, HttpTransport.describe, lambda transport, url: transport.get_bytes(url, max_bytes=9)):
        with pytest.raises(error) as caught:
            attempt(bench.connect(), f"{origin.url}/w?{SECRET}")
        assert type(caught.value) is error
        assert SECRET not in str(caught.value)


def test_an_overloaded_server_says_when_to_come_back(bench: Bench) -> None:
    origin = bench.start(lambda ask: Reply(429, headers={"Retry-After": "7"}))
    with pytest.raises(SourceUnavailable) as caught:
        read_any(bench.connect(), f"{origin.url}/w")
    assert caught.value.retry_after_seconds == 7.0


def test_nobody_listening_is_unavailable(bench: Bench) -> None:
    with origin_http(file_server()) as origin:
        url = origin.url
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1 cannot be reached"):
        read_any(bench.connect(), f"{url}/w")


# ------------------------------------------------------------------------------------------------------- describing


@pytest.mark.parametrize(
    ("answer", "description"),
    [
        (file_server(), Description(len(DATA), '"one"', None, is_page=False)),
        (file_server({"ETag": 'W/"x"'}), Description(len(DATA), None, None, is_page=False)),
        (file_server({"ETag": "unquoted"}), Description(len(DATA), None, None, is_page=False)),
        (lambda ask: Reply(200, DATA, {"ETag": '"one"'}), Description(len(DATA), '"one"', None, is_page=False)),
        (lambda ask: ranged(ask, b""), Description(0, None, None, is_page=False)),
        (
            lambda ask: Reply(200, b"<html>", {"Content-Type": "text/HTML; charset=utf-8", "Last-Modified": "Tue, 1"}),
            Description(6, None, "Tue, 1", is_page=True),
        ),
    ],
)
def test_a_file_is_described_by_its_first_byte(bench: Bench, answer: Answer, description: Description) -> None:
    origin = bench.start(answer)
    assert bench.connect().describe(f"{origin.url}/w") == description
    assert [ask.headers["range"] for ask in origin.asked] == ["bytes=0-0"]


def test_a_large_file_is_not_read_to_describe_it(bench: Bench) -> None:
    origin = bench.start(lambda ask: Reply(200, DATA, {"Content-Length": "10000000000"}, sent_bytes=9, stalls=True))
    assert bench.connect().describe(f"{origin.url}/w").size_bytes == 10_000_000_000


def test_a_file_without_a_size_cannot_be_used(bench: Bench) -> None:
    origin = bench.start(lambda ask: Reply(200, DATA, chunked=True))
    with pytest.raises(SourceUnusable, match="how large"):
        bench.connect().describe(f"{origin.url}/w")


# -------------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize("chunked", [False, True])
def test_a_document_is_read_up_to_its_bound(bench: Bench, chunked: bool) -> None:
    origin, transport = bench.start(lambda ask: Reply(200, b'{"a": 1}', chunked=chunked)), bench.connect()
    assert transport.get_json(f"{origin.url}/d", max_bytes=8) == {"a": 1}
    with pytest.raises(SourceUnusable, match="larger than 7 bytes"):
        transport.get_bytes(f"{origin.url}/d", max_bytes=7)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_unusable(bench: Bench, body: bytes) -> None:
    origin = bench.start(lambda ask: Reply(200, body))
    with pytest.raises(SourceUnusable, match="no JSON"):
        bench.connect().get_json(f"{origin.url}/d", max_bytes=1 << 20)


def test_a_compressed_document_is_refused(bench: Bench) -> None:
    origin = bench.start(lambda ask: Reply(200, b"x", {"Content-Encoding": "gzip"}))
    with pytest.raises(SourceUnusable, match="compressed"):
        bench.connect().get_bytes(f"{origin.url}/d", max_bytes=9)


def test_a_form_is_posted_and_its_redirects_are_refused(bench: Bench) -> None:
    origin, transport = bench.start(lambda ask: Reply(200, b"{}")), bench.connect()
    assert transport.post_form(f"{origin.url}/token", {"scope": "a b"}, max_bytes=9).json() == {}
    assert (origin.asked[0].method, origin.asked[0].body) == ("POST", b"scope=a+b")
    origin.answer = lambda ask: Reply(307, headers={"Location": "/elsewhere"})
    with pytest.raises(SourceUnusable):
        transport.post_form(f"{origin.url}/token", {"scope": "a b"}, max_bytes=9)
    assert origin.paths() == ["/token", "/token"]


def test_a_range_outside_the_file_is_a_mistake_of_the_caller(bench: Bench) -> None:
    transport = bench.connect()
    for begin, end in ((0, 0), (5, 4), (-1, 3), (0, len(DATA) + 1)):
        with pytest.raises(ValueError, match="no range"):
            read(transport, "http://127.0.0.1:9/w", begin, end)


def test_files_of_the_server_are_served_by_path(bench: Bench) -> None:
    origin = bench.start(serve({"/a b": DATA}, {"/a b": '"one"'}))
    assert read(bench.connect(), f"{origin.url}/a%20b", 0, 10) == DATA[:10]
