"""Tests on the virtual event loop of `loadtests.fair.virtual_loop`, on which time passes only while everybody waits."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from loadtests.fair.virtual_loop import VirtualLoop, now, run_virtually

__all__ = ["VirtualLoop", "now", "run_virtually", "turns", "until", "virtually"]

T = TypeVar("T")
P = ParamSpec("P")


def virtually(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """A test that is `run_virtually`."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_virtually(test(*args, **kwargs))

    return run


async def turns(num_turns: int = 20) -> None:
    """Let every task go as far as it can without time passing."""
    for _ in range(num_turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], *, every_seconds: float = 0.0) -> None:
    """Return once something has come about, which is looked at each turn, or every so many seconds."""
    while True:
        if condition():
            return
        await asyncio.sleep(every_seconds)
