"""What every test runs under: nothing may be left behind, and nothing of the caller's environment gets in.

Tasks are looked for in the test's own loop, threads and child processes after that loop has been closed (its
executor's threads end with it). Fixtures of a wider scope start before the first look, so what they hold is theirs.
"""

import asyncio
import inspect
import multiprocessing.resource_tracker
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("headrace", deadline=None)
hypothesis.settings.load_profile("headrace")

_ENDING_THREAD_SECONDS = 2.0
_ENDING_TASK_STEPS = 10


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_configuration_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own `HEADRACE_*` variables and proxies decide nothing here."""
    proxies = {"http_proxy", "https_proxy", "all_proxy"}
    for name in list(os.environ):
        if name.startswith("HEADRACE_") or name.lower() in proxies:
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_leaked_threads_or_processes() -> Iterator[None]:
    """Fail a test that leaves a non-daemon thread or a child process behind."""
    threads, processes = set(threading.enumerate()), _child_processes()
    yield
    for thread in set(threading.enumerate()) - threads:
        if not thread.daemon:
            thread.join(_ENDING_THREAD_SECONDS)
    left = [thread for thread in set(threading.enumerate()) - threads if not thread.daemon]
    assert not left, f"threads left behind: {left}"
    assert not (orphans := _child_processes() - processes), f"child processes left behind: {orphans}"


@pytest.fixture(autouse=True)
def no_leaked_tasks(request: pytest.FixtureRequest, no_leaked_threads_or_processes: None) -> None:
    """Fail an async test that leaves a task behind; others get no event loop."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_watch_tasks")


@pytest.fixture
async def _watch_tasks() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    for _ in range(_ENDING_TASK_STEPS):
        await asyncio.sleep(0)  # what was cancelled last gets its turn to end
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


def _child_processes() -> set[int]:
    """Ids of this process's children, ended ones that nobody waited for included. Linux only; elsewhere empty."""
    tracker = getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None)
    children: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        try:
            children.update(int(number) for number in listing.read_text().split())
        except OSError:  # that thread has just ended
            continue
    return children - {tracker}
