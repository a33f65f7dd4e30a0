"""What the synthetic engine remembers of prompts: their beginnings, in blocks, as vLLM's prefix cache does.

A block is known by itself and everything before it, and by the salt of the request, so requests with different salts
share nothing. The blocks that were used last are kept.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import takewhile

BLOCK_TOKENS = 16
_MAX_BLOCKS = 65_536


class PrefixCache:
    """Blocks that have been computed."""

    def __init__(self, max_num_blocks: int = _MAX_BLOCKS) -> None:
        self._max_num_blocks = max_num_blocks
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def num_known(self, blocks: Sequence[bytes]) -> int:
        """How many of a prompt's blocks are here, without a gap."""
        return sum(1 for _ in takewhile(self._blocks.__contains__, blocks))

    def keep(self, blocks: Sequence[bytes]) -> None:
        """They have been computed, or used."""
        for block in reversed(blocks):  # the beginning of a prompt is wanted more often than its end
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._max_num_blocks:
            self._blocks.popitem(last=False)


class Prefixes:
    """How the prompts of one request begin: `prompts` are their tokens' texts."""

    def __init__(self, cache: PrefixCache, prompts: Sequence[Sequence[str]], cache_salt: str | None) -> None:
        self._cache = cache
        self._lengths = [len(prompt) for prompt in prompts]
        self._blocks = [list(_blocks(prompt, cache_salt)) for prompt in prompts]

    def num_cached(self) -> list[int]:
        """Of each prompt, tokens at hand; the last one is always computed, since the answer begins with it."""
        known = (self._cache.num_known(blocks) for blocks in self._blocks)
        return [max(0, min(n * BLOCK_TOKENS, length - 1)) for n, length in zip(known, self._lengths, strict=True)]

    def keep(self) -> None:
        """The prompts have been worked through."""
        for blocks in self._blocks:
            self._cache.keep(blocks)


def _blocks(prompt: Sequence[str], cache_salt: str | None) -> Iterator[bytes]:
    before = repr(cache_salt).encode(errors="surrogatepass")
    for start in range(0, len(prompt) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        text = "\0".join(prompt[start : start + BLOCK_TOKENS])
        before = blake2b(before + text.encode(errors="surrogatepass"), digest_size=16).digest()
        yield before
