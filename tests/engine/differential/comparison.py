"""The first thing in which two answers differ, in one line; None where they mean the same.

None and absent are the same. Everything else is compared, also fields that nobody has thought of, except for what the
three tables allow.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, TypeVar

from tests.engine.differential.answers import Answer, Document, Frames, Refusal
from tests.engine.differential.meaning import (
    ChoiceStream,
    Malformed,
    StreamMeaning,
    check_head,
    check_tool_call_id,
    read_stream,
)

S = TypeVar("S")
T = TypeVar("T")

# Fields whose values may differ, each with the reason. Their form is checked (`meaning`).
MAY_DIFFER = {
    "id": "random",
    "created": "the clock",
    "choices[].message.tool_calls[].id": "random",
    "system_fingerprint": "names the build and its configuration; OpenAI deprecates it",
}
# Fields that vLLM sends and ours may leave out, each with the reason. Where ours sends them, they must be equal.
OURS_MAY_LEAVE_OUT = {
    "prompt_logprobs": "not OpenAI's; vLLM sends them with a chat's echo although nobody asked for them",
    "choices[].prompt_logprobs": "not OpenAI's; echo with logprobs says the same in choices[].logprobs",
    "choices[].prompt_token_ids": "not OpenAI's; vLLM's stream with echo sends them although nobody asked for them",
}
# Fields in which "" and null mean the same, each with the reason.
EMPTY_OR_NULL = {
    "choices[].message.content": (
        'OpenAI allows both; vLLM has "" beside a call that was forced and null where everything was a thought'
    ),
    "choices[].message.reasoning": 'not OpenAI\'s; vLLM has "" where thoughts have begun and nothing has been thought',
}

# Log-probabilities alone: the rest of what is compared has no fractions. Room for how a float32 is written.
_RELATIVE_TOLERANCE = 1e-6
# A side that merges deltas under load still sends more pieces than this share of the other's.
_LEAST_SHARE_OF_PIECES = 0.5
_SHORT = 200


def difference(ours: Answer, vllm: Answer, *, exact_pieces: bool = False) -> str | None:
    """Compare two answers to the same request. `exact_pieces`: no neighbouring deltas of a stream may be merged."""
    try:
        match ours, vllm:
            case Document(), Document():
                return _documents(ours, vllm)
            case Frames(), Frames():
                return _streams(ours, vllm, exact_pieces=exact_pieces)
            case Refusal(), Refusal():
                return _refusals(ours, vllm)
            case _:
                return f"ours is {ours}, vLLM's is {vllm}"
    except Malformed as breach:
        return str(breach)


def _documents(ours: Document, vllm: Document) -> str | None:
    _of("ours", _check_document, ours.data)
    _of("vLLM's", _check_document, vllm.data)
    return first_difference(ours.data, vllm.data)


def _check_document(document: Any) -> None:
    check_head(document)
    for choice in document["choices"]:
        for call in choice.get("message", {}).get("tool_calls") or ():
            check_tool_call_id(call.get("id"))


def _streams(ours: Frames, vllm: Frames, *, exact_pieces: bool) -> str | None:
    left, right = _of("ours", read_stream, ours.items), _of("vLLM's", read_stream, vllm.items)
    return first_difference(left.document(), right.document()) or _piece_difference(left, right, exact=exact_pieces)


def _of(side: str, read: Callable[[T], S], answer: T) -> S:
    """Read one side; a breach of the format says whose it is."""
    try:
        return read(answer)
    except Malformed as breach:
        raise Malformed(f"{side}: {breach}") from breach
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # a field is missing or of another type
        raise Malformed(f"{side} cannot be read: {error!r}") from error


def _refusals(ours: Refusal, vllm: Refusal) -> str | None:
    if ours.status != vllm.status:
        return f"ours refuses with {ours.status} ({ours.message}), vLLM with {vllm.status} ({vllm.message})"
    return None if ours.message.strip() else "our refusal has no message"


def first_difference(ours: Any, vllm: Any, path: str = "") -> str | None:
    """Compare two JSON values, depth first, in the order of vLLM's fields."""
    place = re.sub(r"\[\d+\]", "[]", path)
    if place in MAY_DIFFER or (ours is None and place in OURS_MAY_LEAVE_OUT):
        return None
    if place in EMPTY_OR_NULL:
        ours, vllm = ours or None, vllm or None
    match ours, vllm:
        case dict(), dict():
            return _first(
                first_difference(ours.get(name), vllm.get(name), f"{path}.{name}".lstrip("."))
                for name in {**vllm, **ours}
            )
        case list(), list() if len(ours) == len(vllm):
            pairs = enumerate(zip(ours, vllm, strict=True))
            return _first(first_difference(left, right, f"{path}[{index}]") for index, (left, right) in pairs)
    return None if _same(ours, vllm) else f"{path}: ours {_shown(ours)}, vLLM's {_shown(vllm)}"


def _first(found: Iterable[str | None]) -> str | None:
    return next((difference for difference in found if difference is not None), None)


def _same(ours: Any, vllm: Any) -> bool:
    if isinstance(ours, bool) or isinstance(vllm, bool):
        return ours is vllm
    if isinstance(ours, int | float) and isinstance(vllm, int | float):
        return math.isclose(ours, vllm, rel_tol=_RELATIVE_TOLERANCE)
    return bool(ours == vllm)


def _shown(value: Any) -> str:
    text = f"{len(value)} entries {value!r}" if isinstance(value, list) else repr(value)
    return text if len(text) <= _SHORT else text[:_SHORT] + "…"


def _piece_difference(ours: StreamMeaning, vllm: StreamMeaning, *, exact: bool) -> str | None:
    """Compare how texts that are equal were cut into deltas."""
    return _first(
        _pieces_of_choice(choice, vllm.choices[index], f"choices[{index}]", exact=exact)
        for index, choice in ours.choices.items()
    )


def _pieces_of_choice(ours: ChoiceStream, vllm: ChoiceStream, path: str, *, exact: bool) -> str | None:
    for name, theirs in vllm.pieces.items():
        if problem := _pieces(ours.pieces[name], theirs, exact=exact):
            return f"{path}.{name}: {problem}"
    return None


def _pieces(ours: Sequence[str], vllm: Sequence[str], *, exact: bool) -> str | None:
    """Both sides read as fast as they can, so that every token is a piece. Under load either side may still get
    several tokens at once and merge them: then every boundary of the coarser one is a boundary of the finer one too.
    """
    mine, theirs = set(accumulate(map(len, ours))), set(accumulate(map(len, vllm)))
    if not (mine <= theirs or theirs <= mine) or (exact and mine != theirs):
        return f"the same text in other pieces: ours {_shown(list(ours))}, vLLM's {_shown(list(vllm))}"
    if len(ours) < _LEAST_SHARE_OF_PIECES * len(vllm):
        return f"ours has {len(ours)} pieces, vLLM's {len(vllm)}"
    return None
