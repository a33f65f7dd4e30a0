"""loadtests.chat_load: what is read off a stream, and what is made of several."""

import json

import pytest

from loadtests.chat_load import Stream, read_stream, summarise
from loadtests.sse_client import ExchangeFailed, Reply, parse_reply

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(document: object) -> bytes:
    return b"data: %s\n\n" % json.dumps(document).encode()


def delta(**fields: str) -> bytes:
    return event({"choices": [{"delta": fields}]})


def usage(num_tokens: int) -> bytes:
    return event({"choices": [], "usage": {"completion_tokens": num_tokens}})


def reply(*parts: bytes) -> Reply:
    """Sent at 0, head at 1, and one part each second after that."""
    return parse_reply(0.0, [HEAD, *parts], [1.0 + number for number in range(len(parts) + 1)])


def test_only_events_with_text_count_as_tokens_that_came() -> None:
    stream = read_stream(
        reply(delta(role="assistant", content=""), delta(content="a"), delta(content="b"), usage(3), DONE)
    )
    assert stream == Stream(sent_at=0.0, token_stamps=(3.0, 4.0), num_tokens=3)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "did not come to its end"),
        ((delta(content="a"), usage(1)), "did not come to its end"),
        ((usage(1), DONE), "did not come to its end"),
        ((delta(content="a"), event({"error": {"message": "engine down"}})), "engine down"),
    ],
)
def test_a_stream_that_does_not_end_well_is_not_a_sample(parts: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(ExchangeFailed, match=message):
        read_stream(reply(*parts))


def test_a_refusal_says_what_was_answered() -> None:
    refusal = parse_reply(0.0, [b'HTTP/1.1 429 Busy\r\n\r\n{"error": "later"}'], [1.0])
    with pytest.raises(ExchangeFailed, match='answered 429: {"error": "later"}'):
        read_stream(refusal)


def test_throughput_runs_from_the_first_request_to_the_last_token() -> None:
    block = summarise([Stream(0.0, (1.0, 2.0, 3.0), 4), Stream(0.5, (1.5, 5.0), 6)])
    assert block.num_tokens == 10
    assert block.tokens_per_second == 10 / 5.0
    assert block.ttft_p50_seconds == 1.0
    assert block.itl_p50_seconds == 1.0
    assert block.itl_p99_seconds == pytest.approx(1.0 + 0.98 * 2.5)
