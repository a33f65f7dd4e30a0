"""Does a crowd move the others? The same streams measured alone and in a crowd, block by block, on one server.

The two are two sides of a `Measurement`, whose order A B, B A lets the slow readers stay for two blocks: it takes them
seconds to fill what the server and the kernel hold for each of them, and a block is measured when that is full, because
only then are they slow readers and not 200 more streams. The idle connections come anew before each block: the server
closes those that were idle for 5 s.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from headrace_server.bench.arrivals import ClosedLoop, Load
from headrace_server.bench.processes import ServerProcesses
from headrace_server.bench.record import Measurement, Record
from headrace_server.bench.side import SideFailed
from headrace_server.bench.summary import BlockResult
from headrace_server.bench.turns import Turns
from loadtests.launcher import MODEL_NAME
from loadtests.limits_server import METRICS_SECONDS, LimitsServer

ALONE, CROWDED = "alone", "in a crowd"
STREAMS = Load(ClosedLoop(16), num_requests=16, num_tokens=128, num_warm_up=16)
CROWD_PROCESS = Path(__file__).resolve().with_name("crowd_process.py")

# Of the tokens that streams at full pace would get: a slow reader takes 4 KiB/s, about 16 tokens.
_SLOW_SHARE = 1 / 3
_ORDER_SECONDS = 60.0
_END_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Size:
    """Of a crowd. `fill_seconds` is the longest that is waited until the slow readers' buffers are full."""

    num_idle: int = 2000
    num_slow: int = 200
    fill_seconds: float = 40.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How many connections of each kind the server has not closed."""

    num_idle: int
    num_slow: int


class CrowdProcess:
    """The process that is the crowd (`crowd_process.py`)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def order(self, word: str) -> Standing:
        """Give an order and wait until it is done.

        Raises:
            SideFailed: the process ended, which may be the server's fault, or it took a minute.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise SideFailed("the crowd has no pipes")
        try:
            async with asyncio.timeout(_ORDER_SECONDS):
                stdin.write(f"{word}\n".encode())
                line = await stdout.readline()
        except TimeoutError as error:
            raise SideFailed(f"the crowd did not get done with {word!r} within {_ORDER_SECONDS:g} s") from error
        if not line:
            raise SideFailed(f"the crowd ended at {word!r}; its last words are above")
        return Standing(**json.loads(line))


@asynccontextmanager
async def crowd_process(server: LimitsServer, size: Size) -> AsyncIterator[CrowdProcess]:
    """A crowd that has not come yet; its process ends with the context, or with this program."""
    endpoint = server.endpoint
    arguments = [endpoint.host, *map(str, (endpoint.port, size.num_idle, size.num_slow))]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(CROWD_PROCESS), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield CrowdProcess(process)
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Its input's end is its own; a process that does not see it is killed."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class Alone:
    """The streams without the crowd. See `Side`."""

    name = ALONE

    def __init__(self, server: LimitsServer, crowd: CrowdProcess) -> None:
        self.processes: ServerProcesses | None = server.side.processes
        self._server = server
        self._crowd = crowd

    async def run_block(self, load: Load, number: int) -> BlockResult:
        await self._crowd.order("leave")
        await self._server.settled_counts()
        return await self._server.side.run_block(load, number)


class Crowded:
    """The streams while the crowd is there; `standings` says how much of it still was after each block. See `Side`."""

    name = CROWDED

    def __init__(self, server: LimitsServer, crowd: CrowdProcess, size: Size, *, itl_ms: float) -> None:
        self.processes: ServerProcesses | None = server.side.processes
        self.standings: list[Standing] = []
        self.num_unfilled = 0
        self._server = server
        self._crowd = crowd
        self._size = size
        self._slow_rate = size.num_slow * 1000 / itl_ms * _SLOW_SHARE

    async def run_block(self, load: Load, number: int) -> BlockResult:
        await self._crowd.order("slow")
        if self._size.num_slow and not await self._are_full():
            self.num_unfilled += 1
        await self._crowd.order("idle")
        result = await self._server.side.run_block(load, number)
        self.standings.append(await self._crowd.order("stand"))
        await self._crowd.order("rest")
        return result

    async def _are_full(self) -> bool:
        """Wait until the slow readers get tokens as slowly as they read; False: they did not in time."""
        made = (await self._server.counts()).tokens_made[MODEL_NAME]
        for _ in range(max(1, round(self._size.fill_seconds / (2 * METRICS_SECONDS)))):
            await asyncio.sleep(2 * METRICS_SECONDS)
            before, made = made, (await self._server.counts()).tokens_made[MODEL_NAME]
            if (made - before) / (2 * METRICS_SECONDS) < self._slow_rate:
                return True
        return False


@dataclass(frozen=True, slots=True)
class CrowdFindings:
    """What was measured; `standings` has one entry for each block in the crowd, from its end."""

    size: Size
    record: Record
    standings: tuple[Standing, ...]
    num_unfilled: int

    @property
    def least(self) -> Standing:
        """The smallest crowd that any block ended with."""
        return Standing(
            min((standing.num_idle for standing in self.standings), default=0),
            min((standing.num_slow for standing in self.standings), default=0),
        )


async def measure_crowd(
    server: LimitsServer, size: Size, *, num_blocks: int, itl_ms: float, tell: Callable[[str], None]
) -> CrowdFindings:
    """All blocks of both sides.

    Raises:
        SideFailed: the server or the crowd did.
    """
    record = Record()

    def report(side: str, number: int, result: BlockResult) -> None:
        shown = ", ".join(f"{m.title} {m.shown(v)} {m.unit}" for m, v in result.figures.items() if "itl" in m.name)
        tell(f"  block {number + 1} of {num_blocks}, {side}: {shown}")

    async with crowd_process(server, size) as crowd:
        crowded = Crowded(server, crowd, size, itl_ms=itl_ms)
        with Turns() as turns:
            await Measurement([Alone(server, crowd), crowded], STREAMS, num_blocks, report).run(turns, record)
        await crowd.order("leave")
    return CrowdFindings(size, record, tuple(crowded.standings), crowded.num_unfilled)
