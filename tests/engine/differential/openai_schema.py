"""Documents and chunks against OpenAI's schema, as the types of its SDK state it.

The SDK itself never validates what it receives; here its pydantic types do, strictly: a required field that is missing
and a value of the wrong type are problems, fields that OpenAI does not know are none.
"""

from collections.abc import Mapping
from typing import Any

import openai.types
import openai.types.chat
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from headrace_server.domain import Operation


class CompletionChunk(openai.types.Completion):
    """A chunk of a text completion: OpenAI has one type for it and for the document."""


DOCUMENTS: Mapping[Operation, type[BaseModel]] = {
    Operation.CHAT: openai.types.chat.ChatCompletion,
    Operation.COMPLETION: openai.types.Completion,
}
CHUNKS: Mapping[Operation, type[BaseModel]] = {
    Operation.CHAT: openai.types.chat.ChatCompletionChunk,
    Operation.COMPLETION: CompletionChunk,
}

_FIRST_TOKEN = "echo: nothing comes before the first token, so it has no probability; OpenAI's own answer is null too"
# Where vLLM does not keep to the letter of the schema, by type, field and value, each with the reason to bear it.
BORNE: Mapping[tuple[type[BaseModel], str, str | None], str] = {
    (CompletionChunk, "choices.finish_reason", None): (
        "the document's type has no null here; OpenAI's own streams send null until the last chunk"
    ),
    (openai.types.Completion, "choices.logprobs.token_logprobs", None): _FIRST_TOKEN,
    (openai.types.Completion, "choices.logprobs.top_logprobs", None): _FIRST_TOKEN,
    (CompletionChunk, "choices.logprobs.token_logprobs", None): _FIRST_TOKEN,
    (CompletionChunk, "choices.logprobs.top_logprobs", None): _FIRST_TOKEN,
    (openai.types.chat.ChatCompletion, "choices.message.role", "user"): (
        "add_generation_prompt: false, which is not OpenAI's, makes the model go on with the last message"
    ),
}


def problem_with(schema: type[BaseModel], document: Any) -> str | None:
    """The first thing in which a document does not fit a type of OpenAI's; None: it fits."""
    try:
        schema.model_validate(document, strict=True)
    except ValidationError as error:
        return next((_line(found) for found in error.errors() if not _is_borne(schema, found)), None)
    return None


def _is_borne(schema: type[BaseModel], found: ErrorDetails) -> bool:
    place = ".".join(part for part in found["loc"] if isinstance(part, str))
    value = found["input"]
    return (value is None or isinstance(value, str)) and (schema, place, value) in BORNE


def _line(found: ErrorDetails) -> str:
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}, got {found['input']!r:.100}"
