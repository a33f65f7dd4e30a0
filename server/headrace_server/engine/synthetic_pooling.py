"""Embeddings, rerank and score: payloads to documents.

Reading a request and answering it are two steps, so that the engine can wait for a slot in between and count the
prompt's tokens. Answering is a coroutine that gives way after every text: a request may hold two thousand.
"""

import base64
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from headrace_server.domain import EngineRequest, Operation
from headrace_server.engine.synthetic_dialect import Envelope, encode
from headrace_server.engine.synthetic_payloads import read
from headrace_server.engine.synthetic_plan import bounded_tokens
from headrace_server.engine.synthetic_task import texts_of
from headrace_server.engine.synthetic_vectors import DEFAULT_DIMENSIONS, MAX_DIMENSIONS, embedded, similarity
from headrace_server.engine.synthetic_vocabulary import LONGEST_PIECE, split
from headrace_server.errors import InvalidRequest

GiveWay: TypeAlias = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class EmbeddingTask:
    """One vector per text."""

    texts: tuple[str, ...] = field(repr=False)
    dimensions: int
    is_base64: bool


@dataclass(frozen=True, slots=True)
class PairTask:
    """One similarity per pair of `lefts[i]` and `rights[i]`. `top_n` is None for scores, which keep their order."""

    lefts: tuple[str, ...] = field(repr=False)
    rights: tuple[str, ...] = field(repr=False)
    top_n: int | None = None


@dataclass(frozen=True, slots=True)
class PoolingTask:
    """A pooling request, and the tokens of all its texts."""

    work: EmbeddingTask | PairTask
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class _EmbeddingPayload:
    input: str | tuple[str | int | tuple[int, ...], ...]
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None
    truncate_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _RerankPayload:
    query: str
    documents: tuple[str, ...]
    top_n: int | None = None
    truncate_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _ScorePayload:
    text_1: str | tuple[str, ...]
    text_2: str | tuple[str, ...]
    truncate_prompt_tokens: int | None = None


def pooling_task(request: EngineRequest, max_model_len: int) -> PoolingTask:
    """Read the payload of a pooling operation.

    Raises:
        InvalidRequest: the payload is not what the operation takes, or a text is too long.
    """
    match request.operation:
        case Operation.EMBEDDING:
            return _embedding_task(read(request.payload, _EmbeddingPayload), max_model_len)
        case Operation.RERANK:
            rerank = read(request.payload, _RerankPayload)
            limit = _Limit(max_model_len, rerank.truncate_prompt_tokens)
            return _pair_task((rerank.query,), rerank.documents, rerank.top_n or len(rerank.documents), limit)
        case Operation.SCORE:
            score = read(request.payload, _ScorePayload)
            limit = _Limit(max_model_len, score.truncate_prompt_tokens)
            return _pair_task(texts_of(score.text_1), texts_of(score.text_2), None, limit)
        case other:
            raise ValueError(f"{other} does not pool")


@dataclass(frozen=True, slots=True)
class _Limit:
    """How long a text may be, and to how many tokens it is cut (-1: to what fits), both in tokens."""

    max_model_len: int
    cut_to: int | None

    def tokens(self, text: str) -> list[str]:
        if self.cut_to is None:
            return bounded_tokens(text, self.max_model_len)
        num_kept = self.max_model_len if self.cut_to < 0 else min(self.cut_to, self.max_model_len)
        return split(text[: (num_kept + 1) * LONGEST_PIECE])[:num_kept]


def _embedding_task(payload: _EmbeddingPayload, max_model_len: int) -> PoolingTask:
    dimensions = payload.dimensions or DEFAULT_DIMENSIONS
    if dimensions > MAX_DIMENSIONS:
        raise InvalidRequest(f"dimensions may be {MAX_DIMENSIONS} at most", param="dimensions")
    limit = _Limit(max_model_len, payload.truncate_prompt_tokens)
    inputs = [limit.tokens(text) for text in texts_of(payload.input)]
    texts = tuple("".join(tokens) for tokens in inputs)
    work = EmbeddingTask(texts, dimensions, payload.encoding_format == "base64")
    return PoolingTask(work, sum(map(len, inputs)))


def _pair_task(lefts: tuple[str, ...], rights: tuple[str, ...], top_n: int | None, limit: _Limit) -> PoolingTask:
    if len(lefts) == 1:
        lefts = lefts * len(rights)
    if len(lefts) != len(rights):
        raise InvalidRequest("one text to one or many, or as many as there are on the other side", param="text_1")
    one, other = [limit.tokens(text) for text in lefts], [limit.tokens(text) for text in rights]
    work = PairTask(tuple(map("".join, one)), tuple(map("".join, other)), top_n)
    return PoolingTask(work, sum(map(len, one)) + sum(map(len, other)))


async def pooled(task: PoolingTask, envelope: Envelope, give_way: GiveWay) -> bytes:
    """The reply's document."""
    usage = {"prompt_tokens": task.num_prompt_tokens, "total_tokens": task.num_prompt_tokens}
    match task.work:
        case EmbeddingTask() as work:
            return encode(await _embeddings(work, envelope, usage, give_way))
        case PairTask(top_n=None) as work:
            return encode(await _scores(work, envelope, usage, give_way))
        case PairTask() as work:
            return encode(await _ranking(work, envelope, usage, give_way))


async def _embeddings(
    work: EmbeddingTask, envelope: Envelope, usage: dict[str, int], give_way: GiveWay
) -> dict[str, Any]:
    data = []
    for index, text in enumerate(work.texts):
        vector = embedded(text, work.dimensions)
        shown = _base64(vector) if work.is_base64 else vector
        data.append({"object": "embedding", "index": index, "embedding": shown})
        await give_way()
    return {**_listing("embd", envelope), "data": data, "usage": usage}


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def _scores(work: PairTask, envelope: Envelope, usage: dict[str, int], give_way: GiveWay) -> dict[str, Any]:
    scores = await _similarities(work, give_way)
    data = [{"object": "score", "index": index, "score": score} for index, score in enumerate(scores)]
    return {**_listing("score", envelope), "data": data, "usage": usage}


def _listing(prefix: str, envelope: Envelope) -> dict[str, Any]:
    name = f"{prefix}-{envelope.request_id}"
    return {"id": name, "object": "list", "created": envelope.created, "model": envelope.model}


async def _ranking(work: PairTask, envelope: Envelope, usage: dict[str, int], give_way: GiveWay) -> dict[str, Any]:
    scores = await _similarities(work, give_way)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: work.top_n]
    results = [{"index": i, "document": {"text": work.rights[i]}, "relevance_score": scores[i]} for i in order]
    return {"id": f"rerank-{envelope.request_id}", "model": envelope.model, "usage": usage, "results": results}


async def _similarities(work: PairTask, give_way: GiveWay) -> list[float]:
    """Between 0 and 1, as relevance is; 1 for equal texts."""
    scores = []
    for left, right in zip(work.lefts, work.rights, strict=True):
        scores.append(max(0.0, min(1.0, similarity(embedded(left), embedded(right)))))
        await give_way()
    return scores
