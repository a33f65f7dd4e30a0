"""Plans as deltas: one per token and choice, the last of a choice with the reason for its end.

An echoed prompt comes with the first token, and so do the id and the name of a called tool.
"""

from collections.abc import Iterator
from itertools import zip_longest

from headrace_server.engine.synthetic_dialect import OPENAI_FINISH
from headrace_server.engine.synthetic_logprobs import scored, unscored
from headrace_server.engine.synthetic_plan import Choice, Plan
from headrace_server.generation import Delta, TokenLogprob, ToolCallDelta


def step_deltas(plan: Plan, request_id: str) -> Iterator[list[Delta]]:
    """One item per step of the plan, with a delta of every choice that has not ended."""
    num_top = plan.task.top_logprobs
    for step in zip_longest(*(_deltas(choice, num_top, request_id) for choice in plan.choices)):
        yield [delta for delta in step if delta is not None]


def _deltas(choice: Choice, num_top: int | None, request_id: str) -> Iterator[Delta]:
    last = len(choice.pieces) - 1
    for number, piece in enumerate(choice.pieces):
        echoed = choice.echoed if number == 0 else []
        yield Delta(
            index=choice.index,
            text="" if choice.tool else "".join((*echoed, piece)),
            num_tokens=1,
            finish_reason=OPENAI_FINISH[choice.finish] if number == last else None,
            stop_reason=choice.stop if number == last else None,
            tool_calls=_call(choice, piece, request_id, is_first=number == 0),
            logprobs=None if num_top is None else _logprobs(echoed, piece, num_top),
        )


def _call(choice: Choice, piece: str, request_id: str, *, is_first: bool) -> tuple[ToolCallDelta, ...]:
    if choice.tool is None:
        return ()
    if is_first:
        return (ToolCallDelta(0, f"call-{request_id}-{choice.index}", choice.tool, piece),)
    return (ToolCallDelta(0, None, None, piece),)


def _logprobs(echoed: list[str], piece: str, num_top: int) -> tuple[TokenLogprob, ...]:
    """Nothing came before the first token of an echoed prompt, so it has no score."""
    pieces = [*echoed, piece]
    first = unscored(pieces[0]) if echoed else scored(pieces[0], num_top)
    return (first, *(scored(other, num_top) for other in pieces[1:]))
