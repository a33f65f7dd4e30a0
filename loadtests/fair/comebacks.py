"""Rows `burst` and `stampede`: clients that were refused, and come back.

In `burst` four times as many requests come as the engine can serve, for 20 s; who is refused comes back once, exactly
when it was told to. In `stampede` they do not listen: all of them come back at one moment, and again, until they are
served or have tried five times.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from headrace_server.domain import ServiceClass
from loadtests.fair.answers import Answer
from loadtests.fair.findings import COUNT, RATIO, SECONDS, SHARE, Findings, at_least, at_most
from loadtests.fair.loads import Ask, poisson
from loadtests.fair.overload import OVERLOAD
from loadtests.fair.scale import Scale
from loadtests.fair.virtual_server import Setup, VirtualServer, virtually

T = TypeVar("T")

BURST_SECONDS = 20.0

_ASK = Ask("clients", 128, 32, service_class=ServiceClass.INTERACTIVE)
_LEAST_SERVED = 0.80
_MOST_HINT_SECONDS = 120.0
_STAMPEDES_AT = (21.0, 23.0, 25.0, 27.0, 29.0)


def measure_burst(_scale: Scale) -> Findings:
    """Clients that listen."""
    findings = Findings()
    tries = virtually(Setup(), lambda server: _burst(server, _listens))
    told = [first.refused.retry_after_seconds for first, *_ in tries if first.refused is not None]
    hints = [seconds for seconds in told if seconds is not None]
    findings.add("requests; refused at first", COUNT, len(tries), theirs=len(told))
    if hints:
        back = [second for _, *seconds in tries for second in seconds]
        served = sum(answer.is_complete for answer in back) / len(back)
        title = "served when they came back as told"
        findings.add(title, SHARE, served, target=at_least(_LEAST_SERVED))
        findings.add("furthest Retry-After", SECONDS, max(hints), target=at_most(_MOST_HINT_SECONDS))
        findings.samples["retry_after_seconds"] = hints
        findings.samples["ttft_after_coming_back_seconds"] = [each.ttft_seconds for each in back if each.is_complete]
    findings.remarks.append(f"{len(told) - len(hints)} of {len(told)} refusals named no time")
    return findings


def measure_stampede(_scale: Scale) -> Findings:
    """Clients that do not."""
    findings = Findings()
    tries = virtually(Setup(), lambda server: _burst(server, _does_not_listen))
    last = [answers[-1] for answers in tries]
    served = [answer for answer in last if answer.ended_at is not None]
    findings.add("requests; served in the end", COUNT, len(last), theirs=len(served))
    lost = sum(answer.ended_at is None and answer.refused is None for answer in last)
    findings.add("requests lost", COUNT, lost, target=at_most(0))
    begin, end = min(answers[0].due_at for answers in tries), max(answer.ended_at or 0.0 for answer in served)
    peak = Setup().engine.requests_per_second(_ASK.num_prompt_tokens, _ASK.num_output_tokens)
    findings.add("served a second / capacity", RATIO, len(served) / (end - begin) / peak)
    return findings


async def _burst(server: VirtualServer, client: Callable[[VirtualServer, float], Awaitable[T]]) -> list[T]:
    """What became of each client; `client` is told when the burst began."""
    rate = OVERLOAD * Setup().engine.requests_per_second(_ASK.num_prompt_tokens, _ASK.num_output_tokens)
    began = server.now()
    clients = []
    for due in poisson(_ASK, rate, BURST_SECONDS, seed="burst"):
        await asyncio.sleep(max(0.0, began + due.at_seconds - server.now()))
        clients.append(asyncio.ensure_future(client(server, began)))
    return await asyncio.gather(*clients)


async def _listens(server: VirtualServer, _began: float) -> list[Answer]:
    """Comes back once, at the time that it was told."""
    first = await server.ask(_ASK)
    if first.refused is None or first.refused.retry_after_seconds is None:
        return [first]
    await asyncio.sleep(first.refused.retry_after_seconds)
    return [first, await server.ask(_ASK)]


async def _does_not_listen(server: VirtualServer, began: float) -> list[Answer]:
    """Comes back when all do, until it is served."""
    tries = [await server.ask(_ASK)]
    for at in _STAMPEDES_AT:
        if tries[-1].refused is None:
            break
        await asyncio.sleep(max(0.0, began + at - server.now()))
        tries.append(await server.ask(_ASK))
    return tries
