"""SIGTERM under load, at any moment: every request that was sent ends in a whole answer or in an error that says so, or
was never taken; the server ends well, in time, and leaves nothing.

FAULT_SIGTERMS is how often (10 unless set), FAULT_SEED where the drawing begins; a failure names its seed, and
`FAULT_SEED=<that> FAULT_SIGTERMS=1` does the same again, as far as the machine's scheduling allows.
"""

import asyncio
import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.accounted_client import Account, Client, Ending
from tests.fakes.process import ServerProcess, running_server

NUM_ROUNDS = int(os.environ.get("FAULT_SIGTERMS", "10"))
SEED = int(os.environ.get("FAULT_SEED", "1"))
NUM_CLIENTS = 24
MODELS = ("warm", "other", "cold")
ENDLESS_TOKENS = 4000
MARGIN_SECONDS = 4.0
NOTICE_SECONDS = 1.0  # after which a signal has been heard
PATIENT_SECONDS = 8.0  # in which every answer comes to its end that may, with swaps


@dataclass(frozen=True, slots=True)
class Way:
    """A way in which a server is told to end. `hurry_seconds`: when the second signal comes; None: there is none."""

    name: str
    drain_seconds: float
    max_tokens: int
    hurry_seconds: float | None = None

    @property
    def is_patient(self) -> bool:
        """Whether there is time for every answer."""
        return self.max_tokens < ENDLESS_TOKENS

    @property
    def end_seconds(self) -> float:
        """How long the end may take."""
        seconds = self.drain_seconds if self.hurry_seconds is None else self.hurry_seconds
        return min(seconds, PATIENT_SECONDS) + MARGIN_SECONDS


# An answer takes a second at most where it is to come to its end, and a minute where it is not. In a drain that lasts,
# who is held for a model waits until those before it have had their turns.
WAYS = (
    Way("time for all", drain_seconds=30, max_tokens=60),
    Way("too short", drain_seconds=0.4, max_tokens=ENDLESS_TOKENS),
    Way("a second signal", drain_seconds=60, max_tokens=ENDLESS_TOKENS, hurry_seconds=0.4),
)


def configuration(way: Way, *, hold_seconds: float) -> str:
    """Three models in the memory of two, each of which gives way after its turn."""
    arguments = "{memory_bytes: 900, load_seconds: 0.15, itl_ms: 15}"
    return (
        f"server: {{drain_seconds: {way.drain_seconds}, header_hold_seconds: {hold_seconds}}}\n"
        "engine: {memory_budget_bytes: 2000, turn_seconds: 0.2}\n"
        "models:\n"
        f"  - {{id: warm, engine: synthetic, synthetic: {arguments}}}\n"
        f"  - {{id: other, engine: synthetic, synthetic: {arguments}}}\n"
        f"  - {{id: cold, engine: synthetic, load: demand, synthetic: {arguments}}}\n"
    )


@pytest.mark.parametrize("seed", range(SEED, SEED + NUM_ROUNDS))
async def test_no_request_is_lost_silently_however_the_server_is_told_to_end(tmp_path: Path, seed: int) -> None:
    chance, way = random.Random(seed), WAYS[seed % len(WAYS)]
    # In half of the rounds streams that are held have their headers, and keep-alive comments, before they end.
    (tmp_path / "headrace.yaml").write_text(configuration(way, hold_seconds=chance.choice((0.1, 15.0))))
    with running_server(tmp_path / "headrace.yaml", tmp_path / "log") as server:
        crowd = Crowd(server.port, way)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(NUM_CLIENTS):
                tasks.create_task(crowd.keep_asking(random.Random(chance.random())))
            await asyncio.sleep(chance.uniform(0.1, 1.2))
            told_at = await end(server, way, chance)
        took = time.monotonic() - told_at
    assert took < way.end_seconds
    known = requests_in(tmp_path / "log")
    for account in crowd.accounts:
        assert is_accounted_for(account, way, told_at, known), f"seed {seed}, {way.name}: {account}"
    assert some_of_each(crowd.accounts, way, told_at)


async def end(server: ServerProcess, way: Way, chance: random.Random) -> float:
    """Tell the server to end and wait until it has; when it was told to, on the monotonic clock."""
    told_at = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    if way.hurry_seconds is not None:
        await asyncio.sleep(chance.uniform(0.05, way.hurry_seconds))
        os.kill(server.pid, signal.SIGTERM)
    left_seconds = told_at + way.end_seconds - time.monotonic()
    assert await asyncio.to_thread(server.has_ended, left_seconds), f"{way.name}: it has not ended in time"
    return told_at


class Crowd:
    """Clients that ask one thing after the other until nobody is there any more; every other one has a new connection
    for each question."""

    def __init__(self, port: int, way: Way) -> None:
        self.accounts: list[Account] = []
        self._port = port
        self._way = way
        self._num_clients = 0

    async def keep_asking(self, chance: random.Random) -> None:
        self._num_clients += 1
        client, keeps_connection = Client(self._port), self._num_clients % 2
        try:
            while not self.accounts or self.accounts[-1].ending is not Ending.REFUSED:
                account = await client.ask(self._body(chance))
                self.accounts.append(account)
                if account.ending is Ending.TOLD or not keeps_connection:
                    await client.close()
                    await asyncio.sleep(0.01)
        finally:
            await client.close()

    def _body(self, chance: random.Random) -> dict[str, object]:
        is_long = chance.random() < 0.5
        return {
            "model": chance.choice(MODELS),
            "messages": [{"role": "user", "content": f"question {chance.random()}"}],
            "max_tokens": self._way.max_tokens if is_long else chance.randrange(1, 30),
            "stream": chance.random() < 0.6,
        }


def requests_in(log: Path) -> set[str]:
    """Ids of the requests that the server knows of."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return {str(line["request_id"]) for line in lines if "request_id" in line}


def is_accounted_for(account: Account, way: Way, told_at: float, known: set[str]) -> bool:
    """Whether nothing happened to a request that may not."""
    is_late = account.ended > told_at
    match account.ending:
        case Ending.ANSWERED:
            return account.began < told_at + NOTICE_SECONDS
        case Ending.TOLD:
            came_late = account.began > told_at - 0.01
            return is_late and account.code == "draining" and (came_late or not way.is_patient)
        case Ending.REFUSED:
            return is_late
        case Ending.UNREAD:  # it lay in the kernel when the server closed the door, or the connection
            return account.began > told_at and account.request_id not in known
        case Ending.CUT:
            return False


def some_of_each(accounts: list[Account], way: Way, told_at: float) -> bool:
    """Whether the round was one: requests were open when the server was told to end, and ended as they should."""
    open_then = [account for account in accounts if account.began < told_at < account.ended]
    if way.is_patient:
        return any(account.ending is Ending.ANSWERED for account in open_then)
    return any(account.ending is Ending.TOLD for account in open_then)
