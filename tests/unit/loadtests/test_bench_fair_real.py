"""The row on vLLM, with small servers in its place: what is sent, what is made of the replies, and the picture."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace_server.bench.endpoint import Endpoint
from headrace_server.bench.process_table import ProcessEntry
from headrace_server.domain import ServiceClass
from loadtests.cache_served import WrongResult
from loadtests.fair import real
from loadtests.fair.findings import Findings
from loadtests.fair.loads import Ask, Due
from loadtests.fair.picture import can_draw, draw
from loadtests.fair.real import OURS, THEIRS, UNBOUNDED, RealOptions, Times, measure_real
from loadtests.fair.servers import KEYS, MODEL, Server
from loadtests.fair.traffic import Sender

ASK = Ask("light", 4, 3, service_class=ServiceClass.INTERACTIVE)
QUICK = Times(alone_seconds=0.2, flood_seconds=0.4, flood_begin=0.1, flood_end=0.35, overload_seconds=0.2)


class SmallServer:
    """Streams as many tokens as it is asked for, 5 ms apart; refuses each `refuse_each`-th request, 0: none. With
    `late_refusals` it does so in the stream, as vLLM's server does."""

    def __init__(self, refuse_each: int = 0, *, late_refusals: bool = False) -> None:
        self.requests: list[bytes] = []
        self._late_refusals = late_refusals
        self._refuse_each = refuse_each

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                self.requests.append(head + body)
                if self._refuse_each and len(self.requests) % self._refuse_each == 0:
                    self._refuse(writer)
                    continue
                await self._stream(writer, json.loads(body)["max_tokens"])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _refuse(self, writer: asyncio.StreamWriter) -> None:
        if not self._late_refusals:
            writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}")
            return
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        self._event(writer, {"error": {"message": "busy"}})
        writer.write(b"0\r\n\r\n")

    async def _stream(self, writer: asyncio.StreamWriter, num_tokens: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(num_tokens):
            await asyncio.sleep(0.005)
            self._event(writer, {"choices": [{"text": " word"}]})
        self._event(writer, {"choices": [], "usage": {"completion_tokens": num_tokens}})
        done = b"data: [DONE]\n\n"
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(done), done))

    def _event(self, writer: asyncio.StreamWriter, document: object) -> None:
        frame = b"data: " + json.dumps(document).encode() + b"\n\n"
        writer.write(b"%x\r\n%s\r\n" % (len(frame), frame))


@asynccontextmanager
async def listening(server: SmallServer) -> AsyncIterator[Sender]:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield Sender(Endpoint("127.0.0.1", port), "model", KEYS, timeout_seconds=10.0)
    finally:
        listener.close()


async def test_a_load_is_sent_with_the_tenants_key_and_class_and_every_prompt_is_another_one() -> None:
    server = SmallServer()
    async with listening(server) as sender:
        sent = await sender.open_loop([Due(0.0, ASK), Due(0.05, Ask("flood", 4, 2))])
    first, second = server.requests
    assert f"authorization: Bearer {KEYS['light']}".encode() in first
    assert f"authorization: Bearer {KEYS['flood']}".encode() in second
    assert b"x-headrace-class: interactive\r\n" in first
    assert json.loads(first.split(b"\r\n\r\n")[1])["prompt"] != json.loads(second.split(b"\r\n\r\n")[1])["prompt"]
    assert [answer.is_complete for answer in sent.answers] == [True, True]
    assert sent.seconds > 0.05
    assert sent.tokens_per_second == pytest.approx(5 / sent.seconds)


@pytest.mark.parametrize(("late", "code"), [(False, "429"), (True, "error event")])
async def test_refusals_are_counted_with_the_time_that_they_took(late: bool, code: str) -> None:
    async with listening(SmallServer(refuse_each=2, late_refusals=late)) as sender:
        sent = await sender.closed_loop(ASK, 4, 1)
    refused = [answer.refused for answer in sent.answers if answer.refused is not None]
    assert [each.code for each in refused] == [code, code]
    assert all(0 < each.cost_seconds < 1 for each in refused)
    assert sum(answer.is_complete for answer in sent.answers) == 2


async def test_a_server_that_nobody_can_reach_is_a_failure_and_no_time() -> None:
    async with listening(SmallServer()) as sender:
        pass
    sent = await sender.closed_loop(ASK, 1, 1)
    assert "no connection" in sent.answers[0].failure
    assert not sent.answers[0].is_complete


# ------------------------------------------------------------------------------------------------------ the whole row


class FakeProcesses:
    """Of a server that is in this process."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name = name
        self._log = log

    def entries(self) -> Iterator[ProcessEntry]:
        return iter(())

    async def pause(self) -> None:
        self._log.append(f"pause {self._name}")

    def resume(self) -> None:
        self._log.append(f"resume {self._name}")


class FakeProgram:
    def __init__(self, processes: FakeProcesses) -> None:
        self.processes = processes

    async def while_alive(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await work


Patch = Callable[[int, int], list[str]]


@pytest.fixture
def small_servers(monkeypatch: pytest.MonkeyPatch) -> Patch:
    """Small servers in the place of both, which refuse each so-many-th request; returns the log of turns."""

    def patch(ours: int, theirs: int) -> list[str]:
        log: list[str] = []

        @asynccontextmanager
        async def start(name: str, refuse_each: int) -> AsyncIterator[Server]:
            async with listening(SmallServer(refuse_each)) as sender:
                yield Server(FakeProgram(FakeProcesses(name, log)), sender)  # type: ignore[arg-type]

        async def lines(*_: object) -> dict[str, tuple[str, ...]]:
            return {MODEL.id: ("--max-num-batched-tokens", "64")}

        for name in ("_NUM_STREAMS", "_NUM_STREAMED", "_NUM_PEAK_STREAMED"):
            monkeypatch.setattr(real, name, 8)
        monkeypatch.setattr(real, "engine_lines", lines)
        monkeypatch.setattr(real, "headrace", lambda *_: start("ours", ours))
        monkeypatch.setattr(real, "vllm", lambda _folder, _line, limit: start(f"vllm {limit}", theirs))
        return log

    return patch


async def test_both_sides_are_measured_in_turns_and_the_best_limit_is_found(
    small_servers: Patch, tmp_path: Path
) -> None:
    log = small_servers(0, 5)
    found = await measure_real(RealOptions(num_runs=2, limits=(8, 16), times=QUICK), tmp_path, lambda _line: None)
    titles = {line.title: line for line in found.lines}
    assert titles["… at 4 × / at the peak"].found.num_pairs == 2
    assert titles["output under the flood / vLLM"].target is not None
    assert titles["its requests that were refused"].found.value == 0.0
    assert any("--max-num-queued-reqs" in remark and "8: " in remark for remark in found.remarks)
    assert {f"{side}: ttft_seconds" for side in (OURS, THEIRS, UNBOUNDED)} <= set(found.samples)
    assert "pause ours" in log
    assert any(entry.startswith("pause vllm") for entry in log)


async def test_headrace_can_be_measured_alone(small_servers: Patch, tmp_path: Path) -> None:
    small_servers(0, 0)
    found = await measure_real(RealOptions(num_runs=1, limits=(), times=QUICK), tmp_path, lambda _line: None)
    assert all(line.theirs is None for line in found.lines)


async def test_a_side_that_refuses_everything_is_no_measurement(small_servers: Patch, tmp_path: Path) -> None:
    small_servers(1, 0)
    with pytest.raises((WrongResult, ValueError)):
        await measure_real(RealOptions(num_runs=1, limits=(), times=QUICK), tmp_path, lambda _line: None)


def test_the_picture_shows_who_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    findings = Findings(
        samples={
            f"{OURS}: due_seconds": [1.0, 2.0],
            f"{OURS}: ttft_seconds": [0.1, 0.2],
            f"{THEIRS}: due_seconds": [1.0],
            f"{THEIRS}: ttft_seconds": [3.0],
            f"{THEIRS}: refused_due_seconds": [2.0],
        }
    )
    assert can_draw(findings)
    assert not can_draw(Findings())
    draw(findings, Times(), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
