"""Asks a server of one of the models, and judges the answer: when its first token came, and whether it is the right
one.

A side that answers with another text than before has loaded something else, or computes something else; then there is
nothing to compare. A refusal, a stream that ends in an error and an answer without any text are failures, never times.
"""

import asyncio
import json
import math
import time
from dataclasses import dataclass, field

from headrace_server.bench.endpoint import Api, Endpoint
from headrace_server.bench.http_client import fetch
from headrace_server.bench.http_reply import ExchangeFailed, Reply
from headrace_server.bench.outcomes import error_message
from headrace_server.bench.side import SideFailed
from headrace_server.domain import Operation
from loadtests.cache_served import WrongResult
from loadtests.cache_starts import first_text
from loadtests.launcher import Program
from loadtests.swap.subjects import BenchModel

NUM_TOKENS = 8
PROMPT = "Say something."
ANSWER_SECONDS = 180.0

_RETRY_SECONDS = 0.05
_NEVER_GETS_BETTER = frozenset({400, 401, 403, 404, 405, 413, 415, 422})
# Vectors of one text computed with others beside it differ in the last digits.
_LEAST_COSINE = 0.999


class Unreachable(SideFailed):
    """There was no whole reply: nobody listens yet, or whoever did has gone."""


class Refused(SideFailed):
    """Another status than 200."""

    def __init__(self, status: int, reply: Reply) -> None:
        super().__init__(f"answered {status}: {error_message(reply.body)}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """Stamps of `time.monotonic()`: when it was asked, and when the first text came, or the vector. `text` is all of
    it, empty where the answer is a vector."""

    asked_at: float
    first_at: float
    text: str = ""
    vector: tuple[float, ...] = ()

    @property
    def seconds(self) -> float:
        """From the question to the first token."""
        return self.first_at - self.asked_at


async def answer(endpoint: Endpoint, model: BenchModel, *, seconds: float = ANSWER_SECONDS) -> Answer:
    """Ask once.

    Raises:
        Unreachable: no whole reply, also within `seconds`.
        Refused: another status than 200.
        SideFailed: the answer ended in an error, or has nothing in it.
    """
    asked_at = time.monotonic()
    try:
        reply = await fetch(endpoint, model.operation.value, _question(model), timeout_seconds=seconds)
    except ExchangeFailed as error:
        raise Unreachable(str(error)) from error
    if reply.status != 200:
        raise Refused(reply.status, reply)
    if model.operation is Operation.EMBEDDING:
        return Answer(asked_at, reply.ended_at, vector=_vector(reply))
    _check_stream(reply)
    found = first_text(reply, asked_at)
    return Answer(asked_at, asked_at + found.seconds, found.text)


async def first_answer(program: Program, model: BenchModel, *, seconds: float = ANSWER_SECONDS) -> Answer:
    """Ask a server that is starting every 50 ms until it answers.

    Raises:
        ServerFailed: it ended, refused for good, or did not answer within `seconds`.
    """
    try:
        async with asyncio.timeout(seconds):
            return await program.while_alive(_persistently(program.endpoint, model, seconds))
    except TimeoutError as error:
        raise program.failed(f"no answer within {seconds:g} s") from error


async def _persistently(endpoint: Endpoint, model: BenchModel, seconds: float) -> Answer:
    while True:
        try:
            return await answer(endpoint, model, seconds=seconds)
        except Unreachable:
            await asyncio.sleep(_RETRY_SECONDS)
        except Refused as error:
            if error.status in _NEVER_GETS_BETTER:
                raise
            await asyncio.sleep(_RETRY_SECONDS)


def _question(model: BenchModel) -> dict[str, object]:
    if model.operation is Operation.EMBEDDING:
        return {"model": model.id, "input": PROMPT}
    return Api.CHAT.document(model.id, PROMPT, num_tokens=NUM_TOKENS, stream=True)


def _check_stream(reply: Reply) -> None:
    last = b""
    for event in reply.events():
        last = event.data
        if last.startswith(b"{") and "error" in json.loads(last):
            raise SideFailed(f"the answer ended in an error: {error_message(last)}")
    if last != b"[DONE]":
        raise SideFailed("the answer was cut off")


def _vector(reply: Reply) -> tuple[float, ...]:
    document = json.loads(reply.body)
    vector = tuple(float(number) for number in document["data"][0]["embedding"])
    if not vector:
        raise SideFailed("answered with an empty vector")
    return vector


@dataclass(slots=True)
class Answers:
    """The first answer of each model, which all later ones have to be like, whoever gives them."""

    _known: dict[str, Answer] = field(default_factory=dict)

    def check(self, side: str, model: BenchModel, given: Answer) -> None:
        """Raises WrongResult where it is another one than before."""
        known = self._known.setdefault(model.id, given)
        if given.text != known.text:
            raise WrongResult(f"{side} answered {given.text!r} as {model.id}, and before it was {known.text!r}")
        if given.vector and _cosine(given.vector, known.vector) < _LEAST_COSINE:
            raise WrongResult(f"{side} answered with another vector as {model.id} than before")


def _cosine(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    if len(one) != len(other):
        return 0.0
    dot = math.fsum(a * b for a, b in zip(one, other, strict=True))
    norms = math.hypot(*one) * math.hypot(*other)
    return dot / norms if norms else 0.0
