"""What became of a request: a complete answer, a refusal, or a failure. Pure.

Only a complete answer is a sample: status 200, the number of tokens that was asked for, and for a stream text, usage
and `[DONE]`. A refusal is an answer with another status. Everything else failed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from headrace_server.bench.generator import Exchange
from headrace_server.bench.http_client import Reception
from headrace_server.bench.http_reply import ExchangeFailed, Reply, parse_reply

_MESSAGE_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Complete:
    """A whole answer.

    Attributes:
        began_at: when the request was due in an open loop, so that a late client makes no latency look shorter
            (coordinated omission); when it was written in a closed one.
        late_seconds: from due to written; 0 in a closed loop.
        text_stamps: one for each event with text; empty for an answer in one piece.
        ended_at: of a stream the last text, of an answer in one piece its last byte.
        num_tokens: as the reply's usage says.
    """

    began_at: float
    late_seconds: float
    text_stamps: tuple[float, ...]
    ended_at: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Another status than 200."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Failed:
    """No answer, a broken one, or one of another length."""

    reason: str


Outcome: TypeAlias = Complete | Refused | Failed


def judge(exchange: Exchange, num_tokens: int, *, stream: bool) -> Outcome:
    """What became of a request for `num_tokens` tokens."""
    if isinstance(exchange.came, ExchangeFailed):
        return Failed(str(exchange.came))
    try:
        reply = parse_reply(exchange.came.reads, exchange.came.stamps)
        if reply.status != 200:
            return Refused(reply.status, error_message(reply.body))
        stamps, counted = _read_stream(reply) if stream else ((), _read_document(reply.body))
    except ExchangeFailed as error:
        return Failed(str(error))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return Failed("the answer is not a completion")
    if counted != num_tokens:
        return Failed(f"an answer had {counted} tokens in place of {num_tokens}")
    return _complete(exchange, exchange.came, reply, stamps=stamps, num_tokens=counted)


def _complete(
    exchange: Exchange, came: Reception, reply: Reply, *, stamps: tuple[float, ...], num_tokens: int
) -> Complete:
    due_at = came.sent_at if exchange.due_at is None else exchange.due_at
    return Complete(
        began_at=due_at,
        late_seconds=came.sent_at - due_at,
        text_stamps=stamps,
        ended_at=stamps[-1] if stamps else reply.ended_at,
        num_tokens=num_tokens,
    )


def _read_stream(reply: Reply) -> tuple[tuple[float, ...], int]:
    """The stamps of the events with text, and the tokens that the usage at the end counts."""
    stamps: list[float] = []
    num_tokens: int | None = None
    events = list(reply.events())
    complete = bool(events) and events[-1].data == b"[DONE]"
    for event in events[: -1 if complete else None]:
        item = json.loads(event.data)
        if "error" in item:
            raise ExchangeFailed(f"a stream ended in an error: {error_message(event.data)}")
        if any(_texts(item)):
            stamps.append(event.at)
        num_tokens = (item.get("usage") or {}).get("completion_tokens", num_tokens)
    if not stamps or not complete:
        raise ExchangeFailed("a stream did not come to its end")
    if num_tokens is None:
        raise ExchangeFailed("a stream told no usage")
    return tuple(stamps), num_tokens


def _texts(item: dict[str, Any]) -> Iterator[str | None]:
    """Whatever text an event of either endpoint carries; models that reason do so under two names."""
    for choice in item["choices"]:
        delta = choice.get("delta") or {}
        yield from (choice.get("text"), delta.get("content"), delta.get("reasoning_content"), delta.get("reasoning"))


def _read_document(body: bytes) -> int:
    return int(json.loads(body)["usage"]["completion_tokens"])


def error_message(body: bytes) -> str:
    """The message in an error envelope (OpenAI's, or FastAPI's), else the beginning of the body; one line."""
    try:
        document = json.loads(body)
        error = document.get("error", document)
        text = str(error.get("message") or error.get("detail") or error)
    except (ValueError, AttributeError):
        text = body.decode(errors="replace")
    return " ".join(text.split())[:_MESSAGE_CHARACTERS]
