"""What thousands of requests leave behind in a server: memory, unfinished requests, requests that nobody accounts for.

A closed loop of a fixed mixture, in laps. Memory (RssAnon + VmSwap) is read between laps, when nothing runs. The first
lap does not count: caches, allocator and the metrics' labels reach their size in it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import pairwise

from headrace_server.bench.endpoint import Api, http_request
from headrace_server.bench.generator import GIVE_UP_AFTER_FAILURES, Exchange
from headrace_server.bench.http_client import ConnectionPool
from headrace_server.bench.http_reply import ExchangeFailed
from headrace_server.bench.outcomes import Complete, Failed, Outcome, Refused, judge
from headrace_server.bench.prompts import make_prompt
from headrace_server.bench.side import SideFailed
from loadtests.launcher import MODEL_NAME
from loadtests.limits_server import Counts, LimitsServer

NUM_TOKENS = 16
NUM_LAPS = 4

_PROMPT_TOKENS = 24
_LEAVER_TOKENS = 256
_TIMEOUT_SECONDS = 30.0


class Kind(Enum):
    """What a request is, and what must become of it: an answer, a refusal, or an end by its client."""

    STREAM = auto()
    UNARY = auto()
    LEAVES = auto()
    INVALID = auto()
    UNKNOWN_MODEL = auto()


_CYCLE = 20
_NOT_STREAMS = {3: Kind.UNARY, 7: Kind.LEAVES, 11: Kind.INVALID, 13: Kind.UNARY, 17: Kind.UNKNOWN_MODEL}
_REFUSALS = {Kind.INVALID: 400, Kind.UNKNOWN_MODEL: 404}


def kind_of(number: int) -> Kind:
    """Of every 20 requests 15 are streams, 2 unary, one leaves after its first event, one is invalid (400), and one
    names no model that there is (404).
    """
    return _NOT_STREAMS.get(number % _CYCLE, Kind.STREAM)


@dataclass(slots=True)
class Account:
    """What became of every request that was sent. `unexpected` has whatever should not have happened, by reason."""

    num_sent: int = 0
    num_complete: int = 0
    num_aborted: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)

    @property
    def num_unaccounted(self) -> int:
        """Sent, but neither complete nor refused nor aborted by us."""
        return self.num_sent - self.num_complete - self.refused.total() - self.num_aborted

    def enter(self, kind: Kind, outcome: Outcome) -> None:
        """Book the answer to a request that did not leave."""
        match outcome:
            case Complete() if kind not in _REFUSALS:
                self.num_complete += 1
            case Refused(status) if _REFUSALS.get(kind) == status:
                self.refused[status] += 1
            case Complete():
                self.unexpected[f"{kind.name}: answered"] += 1
            case Refused(status, message):
                self.unexpected[f"{kind.name}: {status}: {message}"] += 1
            case Failed(reason):
                self.unexpected[f"{kind.name}: {reason}"] += 1


@dataclass(frozen=True, slots=True)
class SoakFindings:
    """A whole soak.

    Attributes:
        lap_requests: in each lap.
        memory_bytes: after the warm-up and after each lap.
        account: of all requests, the warm-up's included.
        ended: how many the server saw end, by status.
        num_left: requests in its engine half a minute after the last at the latest.
    """

    lap_requests: int
    memory_bytes: tuple[int, ...]
    account: Account
    ended: Mapping[str, int]
    num_left: int

    @property
    def growth_per_request(self) -> float:
        """Bytes of private memory that a request left behind, on average after the warm-up."""
        num_requests = self.lap_requests * (len(self.memory_bytes) - 1)
        return (self.memory_bytes[-1] - self.memory_bytes[0]) / num_requests

    @property
    def growth_by_lap(self) -> tuple[float, ...]:
        """The same, lap by lap: what levels off is no leak."""
        return tuple((after - before) / self.lap_requests for before, after in pairwise(self.memory_bytes))

    @property
    def num_never_ended(self) -> int:
        """Requests that were sent and whose end the server did not count."""
        return self.account.num_sent - sum(self.ended.values())


async def soak(
    server: LimitsServer, *, num_requests: int, num_warm_up: int, num_streams: int, tell: Callable[[str], None]
) -> SoakFindings:
    """Warm up, then `num_requests` in four laps.

    Raises:
        SideFailed: the server ended, or did with 16 requests what it should not.
    """
    before = await server.settled_counts()
    account = Account()
    lap_requests = num_requests // NUM_LAPS
    memory: list[int] = []
    number = 0
    for length in (num_warm_up, *[lap_requests] * NUM_LAPS):
        with ConnectionPool(server.endpoint) as pool:
            lap = _Lap(server, pool, account, iter(range(number, number + length)))
            await server.while_alive(lap.run(num_streams))
        if account.unexpected.total() >= GIVE_UP_AFTER_FAILURES:
            raise SideFailed(f"the soak was given up: {account.unexpected.most_common(1)}")
        number += length
        after = await server.settled_counts()
        memory.append(server.private_bytes())
        tell(f"  {number:,} requests: {memory[-1] / 2**20:.2f} MiB")
    ended = ended_between(before, after)
    return SoakFindings(lap_requests, tuple(memory), account, ended, sum(after.in_engine.values()))


def ended_between(before: Counts, after: Counts) -> dict[str, int]:
    """Requests that ended, by status."""
    found = {status: count - before.ended.get(status, 0) for status, count in after.ended.items()}
    return {status: count for status, count in sorted(found.items()) if count}


class _Lap:
    """The requests with these numbers."""

    def __init__(self, server: LimitsServer, pool: ConnectionPool, account: Account, numbers: Iterator[int]) -> None:
        self._endpoint = server.endpoint
        self._pool = pool
        self._account = account
        self._numbers = numbers

    async def run(self, num_streams: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(num_streams):
                group.create_task(self._one_after_another())

    async def _one_after_another(self) -> None:
        for number in self._numbers:
            self._account.num_sent += 1
            kind = kind_of(number)
            request = self._request(number, kind)
            await (self._leave(request) if kind is Kind.LEAVES else self._ask(kind, request))
            if self._account.unexpected.total() >= GIVE_UP_AFTER_FAILURES:
                return

    def _request(self, number: int, kind: Kind) -> bytes:
        document = Api.CHAT.document(
            "no-such-model" if kind is Kind.UNKNOWN_MODEL else MODEL_NAME,
            make_prompt(_PROMPT_TOKENS, f"soak/{number}"),
            num_tokens=_LEAVER_TOKENS if kind is Kind.LEAVES else NUM_TOKENS,
            stream=kind is not Kind.UNARY,
        )
        if kind is Kind.INVALID:
            document["max_tokens"] = -1
        return http_request(self._endpoint, Api.CHAT.path, document)

    async def _ask(self, kind: Kind, request: bytes) -> None:
        exchange: Exchange
        try:
            exchange = Exchange(0, None, await self._pool.exchange(request, timeout_seconds=_TIMEOUT_SECONDS))
        except ExchangeFailed as error:
            exchange = Exchange(0, None, error)
        self._account.enter(kind, judge(exchange, NUM_TOKENS, stream=kind is not Kind.UNARY))

    async def _leave(self, request: bytes) -> None:
        """Ask for a stream and go when its first event has come."""
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(self._endpoint.host, self._endpoint.port)
                try:
                    writer.write(request)
                    await reader.readuntil(b"\n\n")
                finally:
                    writer.transport.abort()
                    with suppress(ConnectionError):
                        await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError) as error:
            self._account.unexpected[f"{Kind.LEAVES.name}: {type(error).__name__}"] += 1
            return
        self._account.num_aborted += 1
