"""The synthetic model's vocabulary and its reversible, stateless tokenisation.

A token id stands for one of three things, in this order of ids: a word of the vocabulary with its leading space,
one character outside ASCII, or a run of one to four ASCII characters. Every text splits into such pieces in exactly
one way, and joining them gives the text back. All ids are below 2**31. What the model says of its own is vocabulary
words only, drawn by hashing; SHAKE-128 makes a longer answer continue a shorter one.
"""

import re
from collections.abc import Iterable, Iterator
from hashlib import shake_128

from headrace_server.errors import InvalidRequest

_TEXT = (
    "the a of and to in is it that was on for with as by from at or an be "
    "water river stream brook creek spring lake pond rain cloud snow ice flood tide wave current "
    "mill wheel gate weir dam race channel bank bridge stone rock sand clay earth hill valley "
    "field meadow forest tree leaf root branch flower grass seed bread grain flour corn barley oats "
    "morning evening night day summer winter autumn year hour moment first second third last early late "
    "slow quick deep shallow wide narrow cold warm bright dark quiet loud old new small great "
    "turns runs falls rises carries grinds opens closes holds keeps gives takes brings leaves stays moves "
    "miller farmer baker child friend neighbour wagon horse"
)

WORDS = tuple(f" {word}" for word in _TEXT.split())
_ORD_BASE = len(WORDS)
_RUN_BASE = _ORD_BASE + 0x110000
_RUN_CHARS = 4
_CHAR_BITS = 7
_LENGTH_BITS = _RUN_CHARS * _CHAR_BITS
_IDS = {word: token_id for token_id, word in enumerate(WORDS)}
_PIECE = re.compile(r" ?[A-Za-z]+|[0-9]{1,3}|[\x00-\x7f]|[^\x00-\x7f]")

LONGEST_PIECE = max(map(len, WORDS))
"""In characters; a text of more than `n * LONGEST_PIECE` characters has more than `n` tokens."""


def split(text: str) -> list[str]:
    """The text of each token of `text`; joined they are `text` again."""
    pieces: list[str] = []
    for found in _PIECE.findall(text):
        if len(found) <= _RUN_CHARS or found in _IDS:
            pieces.append(found)
        else:
            pieces.extend(found[i : i + _RUN_CHARS] for i in range(0, len(found), _RUN_CHARS))
    return pieces


def token_id(piece: str) -> int:
    """The id of one piece of `split`."""
    known = _IDS.get(piece)
    if known is not None:
        return known
    if not piece.isascii():
        return _ORD_BASE + ord(piece)
    packed = len(piece) - 1
    for byte in piece.encode().ljust(_RUN_CHARS, b"\0"):
        packed = packed << _CHAR_BITS | byte
    return _RUN_BASE + packed


def token_text(token: int) -> str:
    """The text of one token id.

    Raises:
        InvalidRequest: no token has this id.
    """
    if 0 <= token < _ORD_BASE:
        return WORDS[token]
    text = _char(token - _ORD_BASE) if token < _RUN_BASE else _run(token - _RUN_BASE)
    if not text:
        raise InvalidRequest(f"{token} is not a token id of this model", code="unknown_token_id")
    return text


def _char(code_point: int) -> str:
    is_surrogate = 0xD800 <= code_point <= 0xDFFF
    return "" if code_point < 0x80 or is_surrogate else chr(code_point)


def _run(packed: int) -> str:
    length = (packed >> _LENGTH_BITS) + 1
    if length > _RUN_CHARS:
        return ""
    shifts = range(_LENGTH_BITS - _CHAR_BITS, -1, -_CHAR_BITS)
    return "".join(chr(packed >> shift & 0x7F) for shift in shifts)[:length]


def join(tokens: Iterable[int]) -> str:
    """The text of token ids.

    Raises:
        InvalidRequest: one of them is no token id.
    """
    return "".join(map(token_text, tokens))


def words(*, about: str, num_tokens: int) -> list[str]:
    """`num_tokens` words that depend on `about` alone."""
    digest = shake_128(about.encode(errors="surrogatepass")).digest(num_tokens)
    return [WORDS[byte % _ORD_BASE] for byte in digest]


def endless_words(*, about: str) -> Iterator[str]:
    """Words without their leading spaces, one after the other."""
    turn = 0
    while True:
        yield from (word.strip() for word in words(about=f"{turn} {about}", num_tokens=16))
        turn += 1
