"""The parts of bench-swap: what a log, a listing and an answer say, what counts as the right answer, which process is
the engine's, what a line of the table says."""

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
from rich.console import Console

from headrace_server.bench.endpoint import Endpoint
from headrace_server.bench.process_table import ProcessId, living_processes
from headrace_server.bench.side import SideFailed
from headrace_server.domain import Operation
from loadtests.bench_swap import parse_options
from loadtests.cache_findings import at_most
from loadtests.cache_served import WrongResult
from loadtests.swap.asking import Answer, Answers, Refused, Unreachable, answer
from loadtests.swap.engine_kill import engine_process
from loadtests.swap.findings import FIRST_TOKEN, Findings, worst
from loadtests.swap.journal import Journal, Load
from loadtests.swap.leftovers import remove, shared_files
from loadtests.swap.process_memory import parse_pss, pss_bytes
from loadtests.swap.report import REPORT
from loadtests.swap.residents import parse_residents
from loadtests.swap.rows import MEASUREMENTS, RowName
from loadtests.swap.subjects import BenchModel

CHAT = BenchModel("chat", "embedded:chat")
EMBEDDER = BenchModel("embedder", "embedded:embedder", Operation.EMBEDDING)


def test_rows_are_measured_in_their_order_and_each_has_a_measurement() -> None:
    assert parse_options([]).rows == tuple(RowName)
    assert parse_options(["--rows", "memory, swap", "--runs", "1"]).rows == (RowName.SWAP, RowName.MEMORY)
    assert list(MEASUREMENTS) == list(RowName)


@pytest.mark.parametrize("arguments", [["--rows", "everything"], ["--runs", "0"], ["--rows", ""]])
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2


# What servers say.


def test_a_log_tells_loads_and_deaths_among_lines_of_others(tmp_path: Path) -> None:
    loaded = {"event": "model_loaded", "model": "a", "seconds": 4.25, "memory_mib": 2003, "estimated_mib": 2509}
    lines = [
        "(EngineCore pid=7) WARNING something",
        json.dumps({"event": "model_state", "model": "a", "state": "loading"}),
        json.dumps(loaded),
        "{not json",
        json.dumps({"event": "engine_died", "model": "a", "detail": "killed"}),
        "[1]",
        json.dumps({**loaded, "seconds": 3.5})[:40],
    ]
    (tmp_path / "log").write_text("\n".join(lines))
    journal = Journal(tmp_path / "log")
    assert journal.loads() == [Load("a", 4.25, 2003 * 2**20, 2509 * 2**20)]
    assert journal.deaths() == ["a"]


def test_a_log_that_has_not_begun_tells_nothing(tmp_path: Path) -> None:
    assert Journal(tmp_path / "log").loads() == []


def listing(**models: tuple[str, int | None, int]) -> bytes:
    entries = [
        {"id": name, "state": state, "memory_bytes": memory, "num_leases": leases}
        for name, (state, memory, leases) in models.items()
    ]
    return json.dumps({"models": entries}).encode()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (("ready", 5, 0), ("cold", None, 0), True),
        (("ready", 5, 1), ("cold", None, 0), False),
        (("loading", 5, 0), ("cold", None, 0), False),
        (("ready", 5, 0), ("ready", 5, 0), False),
        (("ready", 5, 0), ("draining", 5, 1), False),
        (("cold", None, 0), ("cold", None, 0), False),
    ],
)
def test_a_model_is_alone_in_memory_when_no_other_one_takes_any_and_nobody_uses_it(
    a: tuple[str, int | None, int], b: tuple[str, int | None, int], expected: bool
) -> None:
    assert parse_residents(listing(a=a, b=b)).are("a") is expected


def test_memory_is_empty_when_nothing_takes_any() -> None:
    assert parse_residents(listing(a=("cold", None, 0))).are()
    assert not parse_residents(listing(a=("loading", 5, 0))).are()


# What is answered.


def frames(*events: object) -> bytes:
    return "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events).encode()


def delta(content: str) -> dict[str, object]:
    return {"choices": [{"delta": {"content": content}}]}


@asynccontextmanager
async def answering(body: bytes, status: str = "200 OK") -> AsyncIterator[Endpoint]:
    """A server that says the same to everybody."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])


async def test_a_stream_and_a_vector_are_answers() -> None:
    async with answering(frames(delta(""), delta("Hel"), delta("lo"), "[DONE]")) as endpoint:
        found = await answer(endpoint, CHAT)
    assert (found.text, found.vector) == ("Hello", ())
    assert found.first_at >= found.asked_at
    async with answering(json.dumps({"data": [{"embedding": [0.5, 1]}]}).encode()) as endpoint:
        assert (await answer(endpoint, EMBEDDER)).vector == (0.5, 1.0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (frames(delta("Hel"), {"error": {"message": "the engine has gone"}}), "the engine has gone"),
        (frames(delta("Hel")), "cut off"),
        (frames(delta(""), "[DONE]"), "without any text"),
        (b"", "cut off"),
    ],
)
async def test_half_an_answer_is_a_failure_and_not_a_time(body: bytes, reason: str) -> None:
    async with answering(body) as endpoint:
        with pytest.raises(SideFailed, match=reason):
            await answer(endpoint, CHAT)


async def test_a_refusal_says_its_status_and_why() -> None:
    async with answering(b'{"error": {"message": "not today"}}', "503 no") as endpoint:
        with pytest.raises(Refused, match="503: not today") as refused:
            await answer(endpoint, CHAT)
    assert refused.value.status == 503


async def test_where_nobody_listens_there_is_nobody_to_refuse() -> None:
    async with answering(b"") as endpoint:
        pass
    with pytest.raises(Unreachable):
        await answer(endpoint, CHAT)


def test_another_text_than_before_is_no_measurement_whoever_gives_it() -> None:
    answers = Answers()
    answers.check("ours", CHAT, Answer(0, 1, "Hello"))
    answers.check("theirs", CHAT, Answer(0, 2, "Hello"))
    answers.check("ours", BenchModel("other", ""), Answer(0, 1, "Good day"))
    with pytest.raises(WrongResult, match="theirs answered 'Hullo' as chat"):
        answers.check("theirs", CHAT, Answer(0, 2, "Hullo"))


def test_a_vector_may_differ_in_its_last_digits_only() -> None:
    answers = Answers()
    answers.check("ours", EMBEDDER, Answer(0, 1, vector=(0.6, 0.8)))
    answers.check("theirs", EMBEDDER, Answer(0, 1, vector=(0.6001, 0.7999)))
    for other in ((0.8, 0.6), (0.6, 0.8, 0.0), (0.0, 0.0)):
        with pytest.raises(WrongResult, match="another vector"):
            answers.check("theirs", EMBEDDER, Answer(0, 1, vector=other))


# What the kernel says.


def test_memory_is_read_in_bytes_and_a_process_that_has_ended_takes_none() -> None:
    rollup = "55d0-7ffd ---p 00000000 00:00 0    [rollup]\nRss:     900 kB\nPss:      300 kB\nPss_Anon: 20 kB\n"
    assert parse_pss(rollup) == 300 * 1024
    assert parse_pss("") == 0
    own = living_processes()[ProcessId(os.getpid())]
    gone = replace(own, pid=ProcessId(2**22 + 1))  # beyond the largest id that there can be
    assert pss_bytes([own, gone]) > 2**20
    assert pss_bytes([gone]) == 0


def test_shared_memory_and_semaphores_of_a_process_are_found_and_removed() -> None:
    own = ProcessId(os.getpid())
    memory = SharedMemory(create=True, size=4096)
    lock = multiprocessing.get_context("spawn").Lock()
    known = {Path("/dev/shm", memory.name), Path("/dev/shm", f"sem.{name_of(lock)}")}
    try:
        assert known <= shared_files([own])
        assert shared_files([]) == frozenset()
        remove(known)
        assert not known & shared_files([own])
    finally:
        for path in known:
            path.touch()  # for those who unlink what they have made
        memory.close()
        memory.unlink()


def name_of(lock: object) -> str:
    """The name of a semaphore, without its slash."""
    return str(vars(lock)["_semlock"].name).lstrip("/")


@pytest.fixture
def titled() -> Iterator[Callable[[str], ProcessId]]:
    """Starts processes that call themselves something."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(title: str) -> ProcessId:
        process = subprocess.Popen(
            [title, "-c", "print(1, flush=True); input()"], executable=sys.executable, stdin=-1, stdout=-1
        )
        processes.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return ProcessId(process.pid)

    yield start
    for process in processes:
        process.communicate(b"\n")


def test_the_engines_process_is_found_by_its_title_and_there_is_one(titled: Callable[[str], ProcessId]) -> None:
    engine, worker, another = (titled(f"VLLM::{name}") for name in ("EngineCore", "Worker", "EngineCore_DP1"))
    table = living_processes()
    assert engine_process([table[worker], table[engine]]) == engine
    with pytest.raises(WrongResult, match="there are 0"):
        engine_process([table[worker]])
    with pytest.raises(WrongResult, match="there are 2"):
        engine_process([table[engine], table[another]])


# What is shown.


def findings() -> Findings:
    found = Findings()
    for ours, theirs in ((2.0, 10.0), (3.0, 10.0), (4.0, 8.0)):
        found.samples.add(FIRST_TOKEN, "ours", ours)
        found.samples.add(FIRST_TOKEN, "theirs", theirs)
    return found


def test_a_ratio_is_the_median_of_pairs_or_the_worst_of_them() -> None:
    found = findings()
    found.against("a", FIRST_TOKEN, "ours", "theirs", at_most(0.35))
    found.against("b", FIRST_TOKEN, "ours", "theirs", at_most(0.35), judge=worst)
    found.alone("c", FIRST_TOKEN, "ours", at_most(2.5))
    found.against("never measured", FIRST_TOKEN, "ours", "nobody")
    found.alone("never measured", FIRST_TOKEN, "nobody")
    middle, highest, alone = found.lines
    assert (middle.ours, middle.theirs, middle.found.value, middle.met) == (3.0, 10.0, 0.3, True)
    assert (highest.found.value, highest.met) == (0.5, False)
    assert (alone.theirs, alone.found.value, alone.met) == (None, 3.0, False)


def printed(found: dict[str, Findings]) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(REPORT.table(found))
        for remark in REPORT.remarks(found):
            console.print(remark, soft_wrap=True, markup=False)
    return capture.get()


def test_the_table_and_the_document_say_the_same_and_the_document_has_every_sample() -> None:
    found = findings()
    found.against("… / theirs", FIRST_TOKEN, "ours", "theirs", at_most(0.25))
    found.alone("ours", FIRST_TOKEN, "ours", at_most(3.0))
    found.remarks.append("by the way")
    text = " ".join(printed({"cold-start": found}).split())
    assert "… / theirs 3.00 s 10.00 0.300 0.200–0.500 3 ≤ 0.250 missed" in text
    assert "≤ 3.00 met" in text
    assert "cold-start: by the way" in text
    document = REPORT.content({"cold-start": found}, {"num_runs": 3}, began=datetime.now(UTC), measured_on={})
    row = json.loads(json.dumps(document, allow_nan=False))["rows"]["cold-start"]
    assert row["samples"]["first_token_seconds"] == {"ours": [2.0, 3.0, 4.0], "theirs": [10.0, 10.0, 8.0]}
    ratio, alone = row["lines"]
    assert (ratio["found"], ratio["median"], ratio["met"], ratio["theirs"]) == ("ratio", 0.3, False, 10.0)
    assert (alone["found"], alone["median"], alone["met"], alone["theirs"]) == ("ours", 3.0, True, None)
