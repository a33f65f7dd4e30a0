"""`POST /v1/completions` as in OpenAI's API reference, with vLLM's sampling extensions."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from headrace_server.api.schemas.chat import Generation, ResponseFormat, ServiceTier
from headrace_server.api.schemas.common import Text, TokenId, WireRequest

MAX_PROMPTS = 128
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=1_048_576)]


class CompletionRequest(WireRequest, Generation):
    """A text completion; a prompt is text or token ids, or a list of either."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: Text | None = None
    response_format: ResponseFormat | None = None
    service_tier: ServiceTier | None = None

    @model_validator(mode="after")
    def _not_offered(self) -> Self:
        if self.suffix:
            raise ValueError("suffix is not supported")
        return self
