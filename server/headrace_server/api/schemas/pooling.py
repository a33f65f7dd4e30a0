"""Embeddings (OpenAI's shape), rerank (Jina's) and score (vLLM's)."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from headrace_server.api.schemas.common import Text, TokenId, WireRequest

MAX_INPUTS = 2048
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=65_536)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]


class EmbeddingRequest(WireRequest):
    """One vector per input."""

    input: Text | Texts | TokenIds | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS)]
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None


class RerankRequest(WireRequest):
    """Documents in the order of their relevance to a query."""

    query: Text
    documents: Texts
    top_n: Annotated[int, Field(ge=0, le=MAX_INPUTS)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None


class ScoreRequest(WireRequest):
    """Similarity of one text to another, of one to many, or pair by pair."""

    text_1: Text | Texts
    text_2: Text | Texts
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
