"""headrace_server.bench.outcomes: what is read off an answer."""

import pytest

from headrace_server.bench.generator import Exchange
from headrace_server.bench.http_client import Reception
from headrace_server.bench.http_reply import ExchangeFailed
from headrace_server.bench.outcomes import Complete, Failed, Outcome, Refused, error_message, judge
from tests.unit.headrace_server.bench_support import DONE, delta, event, usage, whole

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def streamed(*parts: bytes, num_tokens: int = 3, due_at: float | None = None) -> Outcome:
    """Sent at 0, head at 1, and one part each second after that."""
    stamps = [1.0 + number for number in range(len(parts) + 1)]
    return judge(Exchange(0, due_at, Reception(0.0, [HEAD, *parts], stamps)), num_tokens, stream=True)


def unary(raw: bytes) -> Outcome:
    return judge(Exchange(0, None, Reception(0.0, [raw], [2.0])), 3, stream=False)


def test_only_events_with_text_count_as_tokens_that_came() -> None:
    outcome = streamed(delta(role="assistant", content=""), delta(content="a"), delta(content="b"), usage(3), DONE)
    assert outcome == Complete(0.0, 0.0, (3.0, 4.0), ended_at=4.0, num_tokens=3)


def test_text_of_completions_and_thoughts_of_a_model_count_too() -> None:
    text = event({"choices": [{"text": "a"}]})
    outcome = streamed(text, delta(reasoning_content="b"), delta(reasoning="c"), usage(3), DONE)
    assert isinstance(outcome, Complete)
    assert outcome.text_stamps == (2.0, 3.0, 4.0)


def test_in_an_open_loop_a_late_client_makes_no_latency_shorter() -> None:
    outcome = streamed(delta(content="a"), usage(3), DONE, due_at=-0.5)
    assert isinstance(outcome, Complete)
    assert (outcome.began_at, outcome.late_seconds) == (-0.5, 0.5)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((), "did not come to its end"),
        ((delta(content="a"), usage(3)), "did not come to its end"),
        ((usage(3), DONE), "did not come to its end"),
        ((delta(content="a"), DONE), "told no usage"),
        ((delta(content="a"), usage(2), DONE), "2 tokens in place of 3"),
        ((delta(content="a"), event({"error": {"message": "engine down"}})), "in an error: engine down"),
        ((b"data: {]\n\n", DONE), "not a completion"),
        ((b"data: 7\n\n", DONE), "not a completion"),
        ((event({"choices": 3}), DONE), "not a completion"),
    ],
)
def test_a_stream_that_does_not_end_well_failed(parts: tuple[bytes, ...], reason: str) -> None:
    outcome = streamed(*parts)
    assert isinstance(outcome, Failed)
    assert reason in outcome.reason


def test_an_answer_in_one_piece_ends_with_its_last_byte() -> None:
    assert unary(whole(b'{"usage": {"completion_tokens": 3}}')) == Complete(0.0, 0.0, (), 2.0, 3)
    assert unary(whole(b'{"usage": {"completion_tokens": 2}}')) == Failed("an answer had 2 tokens in place of 3")
    assert unary(whole(b"{}")) == Failed("the answer is not a completion")
    assert unary(b"") == Failed("the server closed the connection without a reply")


def test_another_status_is_a_refusal_with_its_message() -> None:
    outcome = unary(whole(b'{"error": {"message": "come\\nlater"}}', status=b"429 Busy"))
    assert outcome == Refused(429, "come later")


def test_an_exchange_that_failed_keeps_its_reason() -> None:
    assert judge(Exchange(0, None, ExchangeFailed("no connection")), 3, stream=True) == Failed("no connection")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "a"}}', "a"),
        (b'{"detail": "b"}', "b"),
        (b'{"error": "c"}', '{"error": "c"}'),
        (b"<html>d", "<html>d"),
        (b"[1]", "[1]"),
        (b"", ""),
    ],
)
def test_error_messages_are_found_in_the_envelopes_that_servers_use(body: bytes, message: str) -> None:
    assert error_message(body) == message
    assert len(error_message(b"x" * 9999)) == 200
