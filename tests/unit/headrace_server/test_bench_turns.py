"""headrace_server.bench.turns, guardian and record: who runs when, and that everything is continued in every ending."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from headrace_server.bench import measures
from headrace_server.bench.arrivals import ClosedLoop, Load
from headrace_server.bench.interrupts import unless_interrupted
from headrace_server.bench.process_table import ProcessId
from headrace_server.bench.processes import ServerProcesses
from headrace_server.bench.record import Measurement, Record
from headrace_server.bench.side import SideFailed
from headrace_server.bench.summary import BlockResult, Latencies, Tally
from headrace_server.bench.turns import Turns, block_order, reason_not_to_pause
from tests.unit.headrace_server.bench_support import TURN_SECONDS, are_stopped, family

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

# Stops the processes of argv and waits for its own end.
BENCH = """
import asyncio, sys
from headrace_server.bench.interrupts import unless_interrupted
from headrace_server.bench.process_table import ProcessId
from headrace_server.bench.processes import ServerProcesses
from headrace_server.bench.turns import Turns

async def measure():
    with Turns() as turns:
        turns.add("idle", ServerProcesses(ProcessId(int(sys.argv[1]))))
        await turns.give("other")
        print("paused", flush=True)
        await asyncio.Event().wait()

asyncio.run(unless_interrupted(measure()))
"""


class Families:
    """Two families of real processes, `a` and `b`."""

    def __init__(self, a: tuple[ProcessId, ProcessId], b: tuple[ProcessId, ProcessId]) -> None:
        self.a, self.b = a, b

    def add_to(self, turns: Turns) -> None:
        turns.add("a", ServerProcesses(self.a[0]))
        turns.add("b", ServerProcesses(self.b[0]))

    def stopped(self) -> tuple[list[bool], list[bool]]:
        return are_stopped(*self.a), are_stopped(*self.b)


RUNS, STOPPED = [False, False], [True, True]


@pytest.fixture
def families(tmp_path: Path) -> Iterator[Families]:
    with ExitStack() as stack:
        yield Families(stack.enter_context(family(tmp_path)), stack.enter_context(family(tmp_path)))


async def test_whoever_has_the_turn_runs_and_the_others_are_stopped(families: Families) -> None:
    with Turns() as turns:
        families.add_to(turns)
        for name, expected in (("a", (RUNS, STOPPED)), ("a", (RUNS, STOPPED)), ("b", (STOPPED, RUNS))):
            await turns.give(name)
            assert families.stopped() == expected
    assert families.stopped() == (RUNS, RUNS)


async def test_who_leaves_is_continued_and_stopped_no_more(families: Families) -> None:
    with Turns() as turns:
        families.add_to(turns)
        await turns.give("b")
        turns.remove("a")
        assert families.stopped() == (RUNS, RUNS)
        await turns.give("b")
        assert families.stopped() == (RUNS, RUNS)


async def test_an_exception_continues_everything(families: Families) -> None:
    async def fail() -> None:
        with Turns() as turns:
            families.add_to(turns)
            await turns.give("b")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert families.stopped() == (RUNS, RUNS)


async def test_a_cancelled_task_continues_everything(families: Families) -> None:
    paused = asyncio.Event()

    async def measure() -> None:
        with Turns() as turns:
            families.add_to(turns)
            await turns.give("b")
            paused.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(measure())
    await paused.wait()
    assert families.stopped() == (STOPPED, RUNS)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert families.stopped() == (RUNS, RUNS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGABRT])
def test_a_signal_to_the_benchmark_continues_everything(tmp_path: Path, number: signal.Signals) -> None:
    """SIGINT, SIGTERM and SIGHUP by its own hand, the others by its guardian's."""
    with (
        family(tmp_path) as (leader, child),
        subprocess.Popen([sys.executable, "-c", BENCH, str(leader)], stdout=subprocess.PIPE) as bench,
    ):
        assert bench.stdout is not None
        assert bench.stdout.readline() == b"paused\n"
        assert are_stopped(leader, child) == STOPPED
        bench.send_signal(number)
        bench.wait(TURN_SECONDS)
        assert until_running(leader, child)


def test_a_benchmark_killed_with_its_whole_process_group_continues_everything(tmp_path: Path) -> None:
    with (
        family(tmp_path) as (leader, child),
        subprocess.Popen(
            [sys.executable, "-c", BENCH, str(leader)], stdout=subprocess.PIPE, start_new_session=True
        ) as bench,
    ):
        assert bench.stdout is not None
        assert bench.stdout.readline() == b"paused\n"
        os.killpg(bench.pid, signal.SIGKILL)
        bench.wait(TURN_SECONDS)
        assert until_running(leader, child)


async def test_without_its_guardian_a_benchmark_continues_everything_itself(families: Families) -> None:
    with Turns() as turns:
        families.add_to(turns)
        turns._guardian._shell.kill()
        turns._guardian._shell.wait()
        await turns.give("b")
        assert families.stopped() == (STOPPED, RUNS)
    assert families.stopped() == (RUNS, RUNS)


def until_running(*pids: ProcessId) -> bool:
    """The guardian is a process of its own, which does its work a moment later."""
    deadline = time.monotonic() + TURN_SECONDS
    while time.monotonic() < deadline:
        if not any(are_stopped(*pids)):
            return True
    return False


async def test_a_second_signal_does_not_cut_the_ending_short() -> None:
    ending, ended = asyncio.Event(), False

    async def work() -> None:
        nonlocal ended
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            ending.set()
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(5):
                await asyncio.sleep(0)
            ended = True

    assert await unless_interrupted(work()) is False
    assert ended


async def test_work_that_ends_or_fails_by_itself_is_not_interrupted() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    assert await unless_interrupted(asyncio.sleep(0)) is True
    with pytest.raises(ZeroDivisionError):
        await unless_interrupted(fail())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_servers_take_turns_only_where_their_processes_are_known_and_apart(families: Families) -> None:
    a, b = ServerProcesses(families.a[0]), ServerProcesses(families.b[0])
    assert reason_not_to_pause({"a": a, "b": b}) is None
    assert reason_not_to_pause({"a": a, "b": None}) == "no process of b was found on this machine"
    assert reason_not_to_pause({"a": a, "b": ServerProcesses(families.a[1])}) == "both servers share processes"


def test_neither_side_is_always_the_first_one() -> None:
    assert "".join(side for _, side in block_order("ab", 4)) == "abbaabba"
    assert "".join(side for _, side in block_order("abc", 2)) == "abccba"
    assert [number for number, _ in block_order("ab", 3)] == [0, 0, 1, 1, 2, 2]


class FakeSide:
    """Answers a number of blocks, then fails."""

    processes = None

    def __init__(self, name: str, num_blocks: int) -> None:
        self.name = name
        self._left = num_blocks

    async def run_block(self, load: Load, number: int) -> BlockResult:
        if self._left == 0:
            raise SideFailed(f"{self.name} has ended: cut")
        self._left -= 1
        return BlockResult({measures.THROUGHPUT: 1.0}, Latencies(), Tally(1, 1), client=None, num_tokens=1)


async def test_what_was_measured_before_a_side_failed_stands() -> None:
    record, told = Record(), []
    sides = [FakeSide("a", 9), FakeSide("b", 1)]
    measurement = Measurement(sides, Load(ClosedLoop(1), 1), 3, lambda side, number, _: told.append((side, number)))
    with Turns() as turns, pytest.raises(SideFailed, match=r"b has ended: cut \(block 2 of 3, \d+\.\d s after"):
        await measurement.run(turns, record)
    assert told == [("a", 0), ("b", 0)]
    assert {side: tally.num_sent for side, tally in record.tallies.items()} == {"a": 1, "b": 1}
