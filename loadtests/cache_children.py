"""Processes that a row starts: each ends with the row, by its id, and with this program, however that ends.

Our own programs read a line of standard input and then watch it: where it closes their parent is gone. Others get a
guard, a shell that kills them when it reads the end of what we write to it. What a program prints is for us; what it
says on standard error is told when it fails.
"""

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from headrace_server.bench.process_table import ProcessId
from headrace_server.bench.processes import ServerProcesses
from headrace_server.errors import HeadraceError
from loadtests.peers.installation import ROOT
from loadtests.peers.intake import Intake
from loadtests.peers.running import Errand, Peer, environment, start_peer

T = TypeVar("T")

MOST_SECONDS = 180.0

_LINE_BYTES = 4 << 20
_TAIL_BYTES = 2000
_GUARD = """
trap '' HUP INT TERM
read -r line || kill -KILL "$1"
"""


class ChildFailed(HeadraceError):
    """A process ended without the result that it was started for, or took too long. Below the first line of the message
    stands what it said."""


class Child:
    """A running process; `running` makes it."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        if self._process.stdin is not None:
            self._process.stdin.write(line.encode() + b"\n")
            with suppress(ConnectionError):  # it has ended, which its output says
                await self._process.stdin.drain()

    async def lines(self) -> AsyncIterator[str]:
        """What it prints, until it ends."""
        while self._process.stdout is not None and (line := await self._process.stdout.readline()):
            yield line.decode().rstrip("\n")

    async def next_line(self) -> str:
        """The next line that it prints. Raises ChildFailed where there is none."""
        async for line in self.lines():
            return line
        raise await self.failure("ended too early")

    async def last_line(self) -> str:
        """The last line that it prints, once it has ended well. Raises ChildFailed."""
        line = ""
        async for line in self.lines():  # noqa: B007 - the last one is wanted
            pass
        if await self._process.wait() != 0 or not line:
            raise await self.failure("ended without a result")
        return line

    async def failure(self, reason: str) -> ChildFailed:
        """Why it failed, with the end of what it said."""
        await self._process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _TAIL_BYTES))
        said = self._errors.read().decode(errors="replace").strip()
        return ChildFailed(f"a process {reason} (exit code {self._process.returncode})\n{said}".strip())

    async def ended(self) -> None:
        """Wait until it is gone."""
        await self._process.wait()


@asynccontextmanager
async def running(
    line: Sequence[str], *, environment: Mapping[str, str] | None = None, seconds: float = MOST_SECONDS
) -> AsyncIterator[Child]:
    """Start `python *line` in the root of the checkout; it and what it started end with the context.

    Raises:
        ChildFailed: the context was not left within `seconds`.
    """
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *line),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            limit=_LINE_BYTES,
        )
        family = ServerProcesses(ProcessId(process.pid))
        try:
            async with asyncio.timeout(seconds):
                yield Child(process, errors)
        except TimeoutError as error:
            raise ChildFailed(f"a process was not done after {seconds:g} s: {' '.join(line[:3])}") from error
        finally:
            await family.kill()
            await process.wait()


async def peer_intake(peer: Peer, errand: Errand, folder: Path, *, seconds: float = MOST_SECONDS) -> Intake:
    """Let a peer fetch a model; what it measured. Raises ChildFailed."""
    process = start_peer(peer, errand, folder=folder)
    try:
        with ended_with_us(process.pid):
            async with asyncio.timeout(seconds):
                output, _ = await asyncio.to_thread(process.communicate)
    except TimeoutError as error:
        raise ChildFailed(f"{peer} was not done after {seconds:g} s") from error
    finally:
        process.kill()  # does nothing to one that has ended
    if process.returncode != 0:
        raise ChildFailed(f"{peer} ended with {process.returncode}")
    return Intake(**json.loads(output.decode().strip().splitlines()[-1]))


@contextmanager
def ended_with_us(pid: int) -> Iterator[None]:
    """Kill a process if this program ends, however it does, before the context is left."""
    shell = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "guard", str(pid)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        shell.communicate(b"\n")


async def all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What several pieces of work come to, done at the same time; where one fails the others are ended first."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def our_environment(errand: Errand) -> Mapping[str, str]:
    """What our own programs find: as peers, but without the folder of those."""
    found = environment(errand, Path())
    return {name: value for name, value in found.items() if name != "PYTHONPATH"}


def cpu_seconds_of_ended_children() -> float:
    """Processor time of every child that has been waited for so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
