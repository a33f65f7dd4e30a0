"""Log probabilities of synthetic tokens.

The numbers mean nothing, but they behave: deterministic, negative, the chosen token first, alternatives less likely
the later they come.
"""

from headrace_server.engine.synthetic_vocabulary import WORDS, token_id
from headrace_server.generation import TokenLogprob

_STEP = 0.5


def logprob_of(piece: str) -> float:
    """The log probability of a token, between -0.6 and -0.1; 0 for text that a stop string has removed."""
    return -0.1 - token_id(piece) % 100 / 200 if piece else 0.0


def ranked(piece: str, num_ranks: int) -> list[tuple[str, float]]:
    """The token and the alternatives to it, most likely first."""
    chosen = logprob_of(piece)
    others = (word for word in WORDS if word != piece)
    return [
        (piece, chosen),
        *((word, chosen - _STEP * rank) for rank, word in zip(range(1, num_ranks), others, strict=False)),
    ][:num_ranks]


def scored(piece: str, num_top: int) -> TokenLogprob:
    """A token with the `num_top` most likely ones."""
    return TokenLogprob(piece, logprob_of(piece), tuple(ranked(piece, num_top)))


def unscored(piece: str) -> TokenLogprob:
    """A token that has no score."""
    return TokenLogprob(piece, None, None)
