"""What a measurement has brought so far. It outlives whatever ends the measurement, so that a part can be reported."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace_server.bench.arrivals import Load
from headrace_server.bench.measures import Samples
from headrace_server.bench.side import Side, SideFailed
from headrace_server.bench.summary import BlockResult, ClientCost, Latencies, Tally
from headrace_server.bench.turns import Turns, block_order


class Record:
    """Everything measured, by side. One task adds; memory grows with the number of tokens (each gap is kept)."""

    def __init__(self) -> None:
        self.samples = Samples()
        self.latencies: dict[str, Latencies] = {}
        self.tallies: dict[str, Tally] = {}
        self.clients: list[ClientCost] = []

    def add(self, side: str, result: BlockResult) -> None:
        self.samples.add_all(side, result.figures)
        self.latencies.setdefault(side, Latencies()).extend(result.latencies)
        self.tallies.setdefault(side, Tally()).extend(result.tally)
        if result.client is not None:
            self.clients.append(result.client)

    @property
    def client_cpu_seconds_per_token(self) -> float | None:
        num_tokens = sum(client.num_tokens for client in self.clients)
        return sum(client.cpu_seconds for client in self.clients) / num_tokens if num_tokens else None

    @property
    def client_core_share(self) -> float:
        """The most of one core that this process used in any block."""
        return max((client.cpu_seconds / client.wall_seconds for client in self.clients), default=0.0)

    @property
    def late_p99_seconds(self) -> float:
        """The worst p99 lateness of any block."""
        return max((client.late_p99_seconds for client in self.clients), default=0.0)

    @property
    def is_generator_bound(self) -> bool:
        return any(client.was_the_bottleneck for client in self.clients)


@dataclass(frozen=True, slots=True)
class Measurement:
    """So many blocks of a load on each side, numbered from `first_block`. `report` is told of each one that is done."""

    sides: Sequence[Side]
    load: Load
    num_blocks: int
    report: Callable[[str, int, BlockResult], None]
    first_block: int = 0

    async def run(self, turns: Turns, record: Record) -> None:
        """All blocks, one side at a time.

        Raises:
            SideFailed: a side did; the message says in which block and when.
        """
        sides = {side.name: side for side in self.sides}
        began = time.monotonic()
        for number, name in block_order(list(sides), self.num_blocks):
            await turns.give(name)
            try:
                result = await sides[name].run_block(self.load, self.first_block + number)
            except SideFailed as error:
                when = f"block {number + 1} of {self.num_blocks}, {time.monotonic() - began:.1f} s after the first one"
                raise SideFailed(f"{error} ({when})") from error
            record.add(name, result)
            self.report(name, number, result)
