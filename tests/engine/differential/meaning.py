"""What a stream says, whatever chunks it says it in, and the rules that every stream keeps.

`read_stream` puts the chunks of a stream together to the document that they amount to. Where a stream breaks a rule of
OpenAI's API it raises `Malformed` with the first breach: one id, time, model and object in all chunks; each choice
begins with its role and ends with one `finish_reason`; a tool call begins with its id, type and name; counts of tokens
never shrink; the usage of the whole comes last, without choices; then `[DONE]`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_IDS = re.compile(r"(chat)?cmpl-[\w-]+")
_TOOL_CALL_IDS = re.compile(r"(chatcmpl-tool-|call_)[\w-]+")
_TEXTS = ("content", "reasoning", "text")
_CHUNK_FIELDS = {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
_CHOICE_FIELDS = {"index", "delta", "text", "logprobs", "finish_reason", "stop_reason"}
_DELTA_FIELDS = {"role", "content", "reasoning", "tool_calls"}


class Malformed(AssertionError):
    """A rule of the format is broken; the message is the first breach."""


@dataclass(slots=True)
class ChoiceStream:
    """One choice of a stream.

    `pieces` are the deltas that are not empty, by field; `more` are the fields that have no place here.
    """

    role: str | None = None
    pieces: dict[str, list[str]] = field(default_factory=dict)
    tool_calls: dict[int, dict[str, str]] = field(default_factory=dict)
    logprobs: dict[str, list[Any]] | None = None
    finish_reason: str | None = None
    stop_reason: object = None
    usage: Mapping[str, Any] | None = None
    more: dict[str, object] = field(default_factory=dict)
    num_chunks: int = 0

    def document(self) -> dict[str, Any]:
        """The choice as one value."""
        return {
            "role": self.role,
            **{name: "".join(self.pieces.get(name, ())) for name in _TEXTS},
            "tool_calls": [self.tool_calls[index] for index in sorted(self.tool_calls)],
            "logprobs": self.logprobs,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "usage": self.usage,
            **self.more,
        }


@dataclass(slots=True)
class StreamMeaning:
    """A whole stream."""

    head: dict[str, Any]
    choices: dict[int, ChoiceStream] = field(default_factory=dict)
    usage: Mapping[str, Any] | None = None
    more: dict[str, object] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The stream as one value, comparable with another's."""
        choices = [self.choices[index].document() for index in sorted(self.choices)]
        return {**self.head, "choices": choices, "usage": self.usage, **self.more}


def chunks_of(items: tuple[bytes, ...]) -> list[Any]:
    """The decoded chunks of a stream that ends with `[DONE]`.

    Raises:
        Malformed: the stream does not, or its items are not whole frames of one `data` line each.
    """
    _demand(all(item.endswith(b"\n\n") for item in items), "an item is no whole frame")
    frames = b"".join(items).decode().split("\n\n")[:-1]
    _demand(
        all(frame.startswith("data: ") and "\n" not in frame for frame in frames), "a frame is not one line of data"
    )
    texts = [frame.removeprefix("data: ") for frame in frames]
    _demand(texts[-1:] == ["[DONE]"], "the last event is not [DONE]")
    _demand(all(text.startswith("{") for text in texts[:-1]), "an event before the last one is no JSON object")
    return [json.loads(text) for text in texts[:-1]]


def read_stream(items: tuple[bytes, ...]) -> StreamMeaning:
    """Put a stream's chunks together.

    Raises:
        Malformed: a rule is broken.
    """
    chunks = chunks_of(items)
    _demand(bool(chunks), "there is no chunk")
    check_head(chunks[0])
    meaning = StreamMeaning({name: chunks[0].get(name) for name in ("object", "model")})
    for chunk in chunks:
        for name in ("id", "object", "created", "model"):
            _demand(
                chunk.get(name) == chunks[0][name], f"{name} changes from {chunks[0][name]!r} to {chunk.get(name)!r}"
            )
        _add_chunk(meaning, chunk)
    _check_whole(meaning)
    return meaning


def check_head(document: Mapping[str, Any]) -> None:
    """Demand the form of what is random or follows the clock."""
    _demand(bool(_IDS.fullmatch(str(document.get("id")))), f"the id {document.get('id')!r} is none of OpenAI's form")
    created = document.get("created")
    _demand(type(created) is int and created > 1_600_000_000, f"created is {created!r}")


def check_tool_call_id(name: object) -> None:
    """Demand the form of a tool call's id."""
    _demand(isinstance(name, str) and bool(_TOOL_CALL_IDS.fullmatch(name)), f"the tool call's id is {name!r}")


def _add_chunk(meaning: StreamMeaning, chunk: Mapping[str, Any]) -> None:
    _demand(meaning.usage is None, "a chunk comes after the usage of the whole")
    meaning.more |= dict(_more(chunk, _CHUNK_FIELDS))
    if not chunk["choices"]:
        _demand(chunk.get("usage") is not None, "a chunk has neither a choice nor the usage")
        meaning.usage = chunk["usage"]
    for part in chunk["choices"]:
        choice = meaning.choices.setdefault(part["index"], ChoiceStream())
        _add_usage(choice, chunk.get("usage"))
        _add_part(choice, part)


def _add_usage(choice: ChoiceStream, usage: Mapping[str, Any] | None) -> None:
    if choice.num_chunks:
        _demand((usage is None) == (choice.usage is None), "some chunks of a choice have usage, others have none")
    if usage is None:
        return
    _demand(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"], "usage does not add up")
    if choice.usage is not None:
        _demand(usage["completion_tokens"] >= choice.usage["completion_tokens"], "completion_tokens shrinks")
        _demand(usage["prompt_tokens"] == choice.usage["prompt_tokens"], "prompt_tokens changes")
    choice.usage = usage


def _add_part(choice: ChoiceStream, part: Mapping[str, Any]) -> None:
    _demand(choice.finish_reason is None, f"choice {part['index']} goes on after its finish_reason")
    delta = part["delta"] if "delta" in part else {"text": part["text"]}
    if "delta" in part:
        begins = choice.num_chunks == 0
        _demand((delta.get("role") is not None) == begins, f"choice {part['index']}: role {delta.get('role')!r}")
        choice.role = delta.get("role") or choice.role
    choice.num_chunks += 1
    for name in _TEXTS:
        _demand(isinstance(delta.get(name), str | None), f"{name} is {delta.get(name)!r}")
        if delta.get(name):
            choice.pieces.setdefault(name, []).append(delta[name])
    for call in delta.get("tool_calls") or ():
        _add_tool_call(choice.tool_calls, call)
    _add_logprobs(choice, part.get("logprobs"))
    choice.finish_reason, choice.stop_reason = part.get("finish_reason"), part.get("stop_reason")
    choice.more |= dict(_more(part, _CHOICE_FIELDS))
    choice.more |= {f"delta.{name}": value for name, value in _more(delta, _DELTA_FIELDS | {"text"})}


def _add_tool_call(calls: dict[int, dict[str, str]], part: Mapping[str, Any]) -> None:
    function = part.get("function") or {}
    arguments = function.get("arguments") or ""
    if (index := part["index"]) in calls:
        repeated = [name for name in ("id", "type") if part.get(name) is not None]
        _demand(not repeated and function.get("name") is None, f"tool call {index} begins twice")
        calls[index]["arguments"] += arguments
        return
    _demand(index == len(calls), f"tool call {index} comes after {len(calls)} others")
    check_tool_call_id(part.get("id"))
    calls[index] = {"type": part["type"], "name": function["name"], "arguments": arguments}


def _add_logprobs(choice: ChoiceStream, logprobs: Mapping[str, Any] | None) -> None:
    if logprobs is None:
        return
    if choice.logprobs is None:
        choice.logprobs = {}
    for name, entries in logprobs.items():
        if entries is not None:
            choice.logprobs.setdefault(name, []).extend(entries)


def _more(found: Mapping[str, Any], known: set[str]) -> Iterator[tuple[str, Any]]:
    """Fields beyond those that are read here; null is the same as absent."""
    return ((name, value) for name, value in found.items() if name not in known and value is not None)


def _check_whole(meaning: StreamMeaning) -> None:
    _demand(sorted(meaning.choices) == list(range(len(meaning.choices))), f"the choices are {sorted(meaning.choices)}")
    for index, choice in meaning.choices.items():
        _demand(choice.finish_reason is not None, f"choice {index} has no finish_reason")
    running = [choice.usage["completion_tokens"] for choice in meaning.choices.values() if choice.usage is not None]
    if running and meaning.usage is not None:
        _demand(
            sum(running) == meaning.usage["completion_tokens"], "the last running usages do not add up to the whole"
        )


def _demand(holds: bool, breach: str) -> None:
    if not holds:
        raise Malformed(breach)
