"""Log probabilities of synthetic tokens, in OpenAI's two shapes.

The numbers mean nothing, but they behave: deterministic, negative, the chosen token first, alternatives less likely
the later they come.
"""

from typing import Any

from headrace_server.engine.synthetic_vocabulary import WORDS, token_id

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


def chat_entry(piece: str, num_top: int) -> dict[str, Any]:
    """One token of `choices[].logprobs.content`."""
    top = [_named(text, logprob) for text, logprob in ranked(piece, num_top)]
    return {**_named(piece, logprob_of(piece)), "top_logprobs": top}


def _named(piece: str, logprob: float) -> dict[str, Any]:
    return {"token": piece, "logprob": logprob, "bytes": list(piece.encode(errors="surrogatepass"))}


def completion_block(pieces: list[str], *, num_top: int, offset: int, num_unscored: int = 0) -> dict[str, Any]:
    """`choices[].logprobs` of a text completion.

    `offset` is where the first piece starts in the whole text, in characters; the first `num_unscored` pieces have no
    score, as the first token of an echoed prompt has none.
    """
    offsets = [offset]
    for piece in pieces[:-1]:
        offsets.append(offsets[-1] + len(piece))
    scored = pieces[num_unscored:]
    unscored = [None] * min(num_unscored, len(pieces))
    return {
        "tokens": pieces,
        "token_logprobs": [*unscored, *map(logprob_of, scored)],
        "top_logprobs": [*unscored, *(dict(ranked(piece, max(1, num_top))) for piece in scored)],
        "text_offset": offsets,
    }
