"""vLLM's log probabilities → `TokenLogprob`."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from headrace_server.generation import TokenLogprob

# vLLM's `Logprob` by token id, the sampled token first, then the most likely ones; None where nothing was scored.
Step: TypeAlias = "dict[int, Any] | None"

# What JSON shows for a probability of zero, as OpenAI does.
_IMPOSSIBLE = -9999.0


def token_logprobs(
    token_ids: Sequence[int], steps: Sequence[Step], *, num_top: int, tokenizer: Any
) -> tuple[TokenLogprob, ...]:
    """One entry for each token, with the first `num_top` of its step.

    vLLM leaves out the text of some tokens; those are decoded on their own.
    """

    def text(token_id: int, entry: Any) -> str:
        known = None if entry is None else entry.decoded_token
        return known if known is not None else tokenizer.decode([token_id])  # type: ignore[no-any-return]

    def scored(token_id: int, step: Step) -> TokenLogprob:
        entry = (step or {}).get(token_id)
        if step is None or entry is None:
            return TokenLogprob(text(token_id, None), None, None)
        ranked = list(step.items())[:num_top]
        top = tuple((text(other, rank), max(rank.logprob, _IMPOSSIBLE)) for other, rank in ranked)
        return TokenLogprob(text(token_id, entry), max(entry.logprob, _IMPOSSIBLE), top)

    return tuple(scored(token_id, step) for token_id, step in zip(token_ids, steps, strict=True))
