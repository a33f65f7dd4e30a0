"""JSON from strangers, read so that everyone who reads it sees the same: for headers and indexes, not for configs.

What Python's reader lets pass and others do not is refused: names that stand twice, NaN and Infinity, -0 as an integer,
UTF-16, a byte order mark. Brackets and commas are counted first, since a hundred bytes of `[[],[],` become kilobytes of
objects. Strings are not looked at: whoever takes one out asks `is_plain`.
"""

import json
import re
from typing import Any, NoReturn

MAX_BRACKETS = 2_000_000
MAX_COMMAS = 10_000_000
MAX_DIGITS = 20

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def parse(data: bytes) -> object:
    """What `data` says; raises ValueError with the reason. Numbers without fraction come as `int`, never as `bool`."""
    if data.count(b"[") + data.count(b"{") > MAX_BRACKETS or data.count(b",") > MAX_COMMAS:
        raise ValueError("it has too many values")
    try:
        content: object = json.loads(
            data.decode(), object_pairs_hook=_object, parse_int=_integer, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    return content


def is_plain(text: str, *, max_chars: int) -> bool:
    """Whether `text` is not empty, not longer, and free of control characters and halves of surrogate pairs."""
    return 0 < len(text) <= max_chars and _UNPRINTABLE.search(text) is None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return content


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS or digits == "-0":
        raise ValueError(f"{digits[:30]} is not an integer that everyone reads alike")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
