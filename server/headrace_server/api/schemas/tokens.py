"""`POST /tokenize` and `/detokenize`, in vLLM's shape."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from headrace_server.api.schemas.chat import ChatMessage
from headrace_server.api.schemas.common import MAX_MESSAGES, TemplateFields, Text, TokenId, WireRequest


class TokenizeRequest(WireRequest, TemplateFields):
    """Token ids of a prompt or of a rendered conversation: exactly one of the two."""

    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        return self


class DetokenizeRequest(WireRequest):
    """Text of token ids."""

    tokens: Annotated[list[TokenId], Field(max_length=1_048_576)]
