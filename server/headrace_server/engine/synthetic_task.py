"""What a generating request asks of the synthetic model: four wire formats converted to one `Task`.

Prompts are rendered to text here, by a template as simple as can be; no text is tokenised in this module.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from headrace_server.domain import EngineRequest, JsonObject, Operation
from headrace_server.engine.synthetic_payloads import (
    ChatPayload,
    CompletionPayload,
    Content,
    Format,
    Function,
    FunctionTool,
    Message,
    MessagePayload,
    MessageToolChoice,
    NamedTool,
    ResponsePayload,
    read,
)
from headrace_server.engine.synthetic_vocabulary import join
from headrace_server.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Prose:
    """The answer is plain words."""


@dataclass(frozen=True, slots=True)
class Document:
    """The answer is a JSON text that satisfies `schema`."""

    schema: JsonObject


@dataclass(frozen=True, slots=True)
class Call:
    """The answer is a call of the tool `name` with arguments that satisfy `schema`."""

    name: str
    schema: JsonObject


Form: TypeAlias = Prose | Document | Call

_ANY_OBJECT: JsonObject = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


@dataclass(frozen=True, slots=True)
class Task:
    """One request. `max_tokens` bounds each choice; `top_logprobs` is None where no logprobs are wanted."""

    prompts: tuple[str, ...] = field(repr=False)
    form: Form = field(default=Prose(), repr=False)
    n: int = 1
    seed: int = 0
    max_tokens: int | None = None
    stops: tuple[str, ...] = field(default=(), repr=False)
    top_logprobs: int | None = None
    echo: bool = False


def task_of(request: EngineRequest) -> Task:
    """Read the payload of a generating operation, or of `COUNT_TOKENS`.

    Raises:
        InvalidRequest: the payload is not what the operation takes.
    """
    match request.operation:
        case Operation.CHAT:
            return _chat_task(read(request.payload, ChatPayload))
        case Operation.COMPLETION:
            return _completion_task(read(request.payload, CompletionPayload))
        case Operation.RESPONSE:
            return _response_task(read(request.payload, ResponsePayload))
        case Operation.MESSAGE | Operation.COUNT_TOKENS:
            return _message_task(read(request.payload, MessagePayload))
        case other:
            raise ValueError(f"{other} does not generate")


def _chat_task(payload: ChatPayload) -> Task:
    tools = [tool.function for tool in payload.tools or ()]
    choice = payload.tool_choice
    named = choice.function.name if isinstance(choice, FunctionTool) else None
    call = _call(tools, named=named, required=choice == "required")
    return Task(
        prompts=(rendered(payload.messages, [_plain(tool) for tool in tools]),),
        form=call or _form(payload.response_format),
        n=payload.n or 1,
        seed=payload.seed or 0,
        max_tokens=payload.max_completion_tokens or payload.max_tokens,
        stops=_stops(payload.stop),
        top_logprobs=(payload.top_logprobs or 0) if payload.logprobs else None,
    )


def _completion_task(payload: CompletionPayload) -> Task:
    return Task(
        prompts=texts_of(payload.prompt),
        form=_form(payload.response_format),
        n=payload.n or 1,
        seed=payload.seed or 0,
        max_tokens=payload.max_tokens,
        stops=_stops(payload.stop),
        top_logprobs=payload.logprobs,
        echo=bool(payload.echo),
    )


def _response_task(payload: ResponsePayload) -> Task:
    choice = payload.tool_choice
    tools = payload.tools or ()
    named = choice.name if isinstance(choice, NamedTool) else None
    call = _call(tools, named=named, required=choice == "required")
    items = ({"content": payload.input},) if isinstance(payload.input, str) else payload.input
    turns = (Message(str(item.get("role", "user")), _item_content(item)) for item in items)
    system = (Message("system", payload.instructions),) if payload.instructions else ()
    return Task(
        prompts=(rendered([*system, *turns], [_plain(tool) for tool in tools]),),
        form=call or _form(payload.text.format if payload.text else None),
        seed=payload.seed or 0,
        max_tokens=payload.max_output_tokens,
    )


def _message_task(payload: MessagePayload) -> Task:
    tools = [Function(tool.name, tool.input_schema) for tool in payload.tools or ()]
    choice = payload.tool_choice or MessageToolChoice("auto")
    named = choice.name if choice.type == "tool" else None
    system = (Message("system", payload.system),) if payload.system else ()
    return Task(
        prompts=(rendered([*system, *payload.messages], [_plain(tool) for tool in tools]),),
        form=_call(tools, named=named, required=choice.type == "any") or Prose(),
        max_tokens=payload.max_tokens,
        stops=payload.stop_sequences or (),
    )


def rendered(messages: Iterable[Message], tools: Iterable[object] = ()) -> str:
    """The prompt of a conversation: tools first, a mark before each turn and one for the answer."""
    heading = "".join(f"<tool>{_json(tool)}" for tool in tools)
    turns = "".join(f"<{turn.role}>{_flat(turn.content)}{_calls(turn)}" for turn in messages)
    return f"{heading}{turns}<assistant>"


def texts_of(given: str | tuple[str | int | tuple[int, ...], ...]) -> tuple[str, ...]:
    """Prompts or inputs in any of the four forms: text, texts, token ids, lists of token ids.

    Raises:
        InvalidRequest: an id is no token id, or the list is empty.
    """
    if isinstance(given, str):
        return (given,)
    if not given:
        raise InvalidRequest("an empty list was sent where text is needed")
    ids = [item for item in given if isinstance(item, int)]
    if ids:
        return (join(ids),)
    return tuple(item if isinstance(item, str) else join(item) for item in given if not isinstance(item, int))


def _call(tools: Iterable[Function], *, named: str | None, required: bool) -> Call | None:
    for tool in tools:
        if tool.name == named or (required and named is None):
            return Call(tool.name, tool.parameters or {"type": "object"})
    if named is not None or required:
        raise InvalidRequest("tool_choice names a tool that is not among the tools", param="tool_choice")
    return None


def _form(wanted: Format | None) -> Form:
    match wanted.type if wanted else "text":
        case "json_object":
            return Document(_ANY_OBJECT)
        case "json_schema":
            return Document(_schema(wanted) or _ANY_OBJECT)
        case _:
            return Prose()


def _schema(wanted: Format | None) -> JsonObject | None:
    if wanted is None:
        return None
    return wanted.json_schema.schema if wanted.json_schema else wanted.schema


def _stops(stop: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else stop or ()


def _item_content(item: dict[str, Any]) -> Content:
    """The content of an input item of the Responses API; calls and their outputs have none and are taken whole."""
    content = item.get("content")
    if isinstance(content, list):
        return tuple(part for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else (item,)


def _flat(content: Content) -> str:
    """Text parts as they are, all others as JSON."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] if isinstance(part.get("text"), str) else _json(part) for part in content)


def _calls(turn: Message) -> str:
    return _json(turn.tool_calls) if turn.tool_calls else ""


def _plain(tool: Function) -> dict[str, object]:
    return {"name": tool.name, "parameters": tool.parameters}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
