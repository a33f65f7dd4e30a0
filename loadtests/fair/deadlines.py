"""Row `deadlines`: requests that say until when they want their answer, twice as many as the engine can serve.

Deadlines are 2 to 30 s. What matters is what the engine does for nobody: prompts that it begins after the deadline of
their request, and tokens that still come after it.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from loadtests.fair.answers import Answer, refusals
from loadtests.fair.findings import COUNT, SHARE, STEPS, Findings, at_most
from loadtests.fair.loads import Ask, Due, poisson
from loadtests.fair.scale import Scale
from loadtests.fair.virtual_server import Setup, VirtualServer, first_come, virtually
from loadtests.fair.witness import Seen

_LOAD = 2.0
_SHORTEST_SECONDS, _LONGEST_SECONDS = 2.0, 30.0
_GRACE_SECONDS = 60.0
_MOST_STEPS = 1.0
_ASK = Ask("clients", 128, 32)


def measure_deadlines(scale: Scale) -> Findings:
    """With the batcher, and first come, first served, where nobody looks at deadlines."""
    findings = Findings()
    ours, theirs = _run(Setup(), scale), _run(first_come(Setup()), scale)
    step = Setup().engine.full_step_seconds
    late = [sum(is_begun_late(seen, step) for seen in side[1]) for side in (ours, theirs)]
    findings.add("prompts begun after the deadline", COUNT, late[0], theirs=late[1], target=at_most(0))
    overruns = [max(overrun_seconds(seen) for seen in side[1]) / step for side in (ours, theirs)]
    title = "latest token after a deadline, in full steps"
    findings.add(title, STEPS, overruns[0], theirs=overruns[1], target=at_most(_MOST_STEPS))
    met = [_share_met(side[0]) for side in (ours, theirs)]
    findings.add("answers that were whole in time", SHARE, met[0], theirs=met[1])
    counts = ", ".join(f"{count} {code}" for code, count in sorted(refusals(ours[0]).items()))
    findings.remarks.append(f"of {len(ours[0])} requests: {counts}")
    return findings


def is_begun_late(seen: Seen, step_seconds: float) -> bool:
    """Whether the engine was given a prompt after its deadline, or was done with it so late that all of its last step
    came after it."""
    if seen.deadline is None or seen.admitted_at is None:
        return False
    return seen.admitted_at > seen.deadline or (seen.began_at or 0.0) > seen.deadline + step_seconds


def overrun_seconds(seen: Seen) -> float:
    """How long after its deadline a request's last token came; 0 where none did."""
    if seen.deadline is None or seen.last_token_at is None:
        return 0.0
    return max(0.0, seen.last_token_at - seen.deadline)


def _share_met(answers: Sequence[Answer]) -> float:
    return sum(_is_in_time(answer) for answer in answers) / len(answers)


def _is_in_time(answer: Answer) -> bool:
    return answer.ended_at is not None and answer.ended_at <= answer.due_at + (answer.ask.deadline_seconds or 0.0)


def _load(setup: Setup, seconds: float) -> tuple[Due, ...]:
    rate = _LOAD * setup.engine.requests_per_second(_ASK.num_prompt_tokens, _ASK.num_output_tokens)
    chance = random.Random("deadlines")
    return tuple(
        Due(due.at_seconds, replace(due.ask, deadline_seconds=chance.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS)))
        for due in poisson(_ASK, rate, seconds, seed="deadlines")
    )


def _run(setup: Setup, scale: Scale) -> tuple[list[Answer], list[Seen]]:
    async def work(server: VirtualServer) -> tuple[list[Answer], list[Seen]]:
        load = _load(setup, scale.seconds / 2)
        answers = await server.open_loop(load, most_seconds=load[-1].at_seconds + _GRACE_SECONDS)
        return answers, list(server.witness.seen.values())

    return virtually(setup, work)
