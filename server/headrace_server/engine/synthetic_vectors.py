"""Texts as unit vectors: a hashed bag of words.

Each word has a fixed pseudo-random direction; a text is their normalised sum, so that texts which share words lie
closer together. Shorter vectors are prefixes of longer ones, normalised again.
"""

import math
import re
from collections import Counter
from functools import lru_cache
from hashlib import shake_128

DEFAULT_DIMENSIONS = 64
MAX_DIMENSIONS = 4096

_WORD = re.compile(r"\w+")
_MIDDLE = 127.5


def embedded(text: str, dimensions: int = DEFAULT_DIMENSIONS) -> list[float]:
    """The unit vector of a text; one without words has a direction of its own."""
    counts = Counter(_WORD.findall(text.lower())) or Counter([text])
    total = [0.0] * dimensions
    for word, count in counts.items():
        total = [x + count * y for x, y in zip(total, _direction(word, dimensions), strict=True)]
    length = math.hypot(*total)
    return [x / length for x in total]


@lru_cache(maxsize=4096)
def _direction(word: str, dimensions: int) -> tuple[float, ...]:
    digest = shake_128(word.encode(errors="surrogatepass")).digest(dimensions)
    return tuple(byte - _MIDDLE for byte in digest)


def similarity(one: list[float], other: list[float]) -> float:
    """The cosine of two unit vectors, between -1 and 1."""
    return sum(x * y for x, y in zip(one, other, strict=True))
