"""What the upstream engine reads in a client's payload, and what it changes there."""

from collections.abc import Mapping

from headrace_server.domain import Demand, EngineRequest, JsonObject, Operation

# Whose streams tell the usage only to those that ask.
_TELL_IF_ASKED = frozenset({Operation.CHAT, Operation.COMPLETION})
_OUTPUT_BOUNDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


def asking_for_usage(request: EngineRequest) -> dict[str, object]:
    """The payload to send, with which streams say in the end what they have used."""
    payload = dict(request.payload)
    if request.stream and request.operation in _TELL_IF_ASKED:
        payload["stream_options"] = {**_stream_options(payload), "include_usage": True}
    return payload


def demand_of(payload: JsonObject) -> Demand:
    """What a payload asks for, as far as it can be read without a tokenizer."""
    bounds = (payload.get(name) for name in _OUTPUT_BOUNDS)
    bound = next((bound for bound in bounds if isinstance(bound, int)), None)
    num_sequences = _num_choices(payload) * _num_prompts(payload.get("prompt"))
    return Demand(None, None if bound is None else bound * num_sequences, num_sequences)


def _num_choices(payload: JsonObject) -> int:
    n = payload.get("n")
    return n if isinstance(n, int) and n > 0 else 1


def _num_prompts(prompt: object) -> int:
    """Of a text completion: one, unless there is a list of texts or of lists of token ids."""
    is_many = isinstance(prompt, list | tuple) and bool(prompt) and not isinstance(prompt[0], int)
    return len(prompt) if is_many and isinstance(prompt, list | tuple) else 1


def _stream_options(payload: JsonObject) -> JsonObject:
    given = payload.get("stream_options")
    return given if isinstance(given, Mapping) else {}


def wants_usage(payload: JsonObject) -> bool:
    """Whether the client asked to be told what its stream has used."""
    return bool(_stream_options(payload).get("include_usage"))
