"""Row `disconnects`: clients that leave at any moment, and what they leave behind.

Each leaves at a random time after it has come: at the door, in the queue, while its prompt is computed, between two
tokens, or not at all. They come a little faster than the engine can serve them. Afterwards nothing may be held, and a
request alone must be served as fast as by a new server.
"""

import asyncio
import random
from dataclasses import dataclass

from headrace_server.domain import ServiceClass
from loadtests.fair.answers import Answer
from loadtests.fair.findings import COUNT, RATIO, Findings, at_most
from loadtests.fair.loads import Ask
from loadtests.fair.scale import Scale
from loadtests.fair.virtual_server import Setup, VirtualServer, virtually, withdrawn

_PROBE = Ask("probe", 128, 16)
_LOAD = 1.2
_MEAN_PATIENCE_SECONDS = 5.0
_MOST_RATIO = 1.001
# An aborted request leaves the engine at the end of the step that it is in.
_SETTLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Outcome:
    held: dict[str, int]
    before: Answer
    after: Answer
    num_left: int
    num_begun: int


def measure_disconnects(scale: Scale) -> Findings:
    """All clients."""
    found = virtually(Setup(), lambda server: _run(server, scale.num_disconnects))
    findings = Findings()
    for what, number in found.held.items():
        findings.add(f"held in the end: {what}", COUNT, number, target=at_most(0))
    ratio = found.after.ttft_seconds / found.before.ttft_seconds
    findings.add("TTFT of a request alone, afterwards / before", RATIO, ratio, target=at_most(_MOST_RATIO))
    findings.remarks.append(
        f"{scale.num_disconnects} clients: {found.num_left} left before their answer ended, {found.num_begun} of them "
        "after its first token"
    )
    return findings


async def _run(server: VirtualServer, num_clients: int) -> _Outcome:
    before = await server.ask(_PROBE)
    chance = random.Random("disconnects")
    clients: list[tuple[Answer, asyncio.Task[None]]] = []
    for number in range(num_clients):
        ask = _random_ask(number, chance)
        await asyncio.sleep(
            chance.expovariate(_LOAD) * Setup().engine.request_seconds(ask.num_prompt_tokens, ask.num_output_tokens)
        )
        answer = Answer(ask, server.now())
        task = asyncio.ensure_future(server.serve(answer))
        # The loop holds on to a timer, so a client that is done may still be told to leave.
        asyncio.get_running_loop().call_later(_patience(chance), task.cancel)
        clients.append((answer, task))
    tasks = [task for _, task in clients]
    await asyncio.wait(tasks)
    await withdrawn(tasks)
    await asyncio.sleep(_SETTLE_SECONDS)
    left = [answer for answer, task in clients if task.cancelled()]
    held = server.held()
    num_begun = sum(answer.first_at is not None for answer in left)
    return _Outcome(held, before, await server.ask(_PROBE), len(left), num_begun)


def _patience(chance: random.Random) -> float:
    """Now and then none at all."""
    return 0.0 if chance.random() < 0.1 else chance.expovariate(1 / _MEAN_PATIENCE_SECONDS)


def _random_ask(number: int, chance: random.Random) -> Ask:
    return Ask(
        f"tenant-{number % 5}",
        chance.randrange(1, 256),
        chance.randrange(1, 32),
        service_class=chance.choice(tuple(ServiceClass)),
        deadline_seconds=chance.choice((None, None, 1.0)),
        stream=chance.random() < 0.7,
    )
