"""A `headrace serve` with the synthetic engine as a child process, and what can be read of it from outside.

It listens on loopback, and it is ended in every case: by its context, and by a guard when this program was killed
before it could do so. What it says of itself comes from /metrics, what the kernel says of it from /proc.
"""

import asyncio
import json
import resource
import subprocess
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from headrace_server.bench.endpoint import Api, Endpoint
from headrace_server.bench.http_client import fetch
from headrace_server.bench.http_reply import ExchangeFailed
from headrace_server.bench.process_table import PROC, ProcessId
from headrace_server.bench.side import Side
from headrace_server.errors import UsageError
from loadtests.launcher import MODEL_NAME, Program, SideName, Subject
from loadtests.sides import start_side

T = TypeVar("T")

# /metrics is made anew twice a second: whoever asks after this long sees nothing older than their question.
METRICS_SECONDS = 0.55
_REST_SECONDS = 30.0
_GUARD = """
trap '' HUP INT TERM
read -r line || kill -KILL "$1"
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """One reading of /metrics, at most half a second old: by model, and of chat completions by status."""

    in_engine: Mapping[str, int]
    tokens_made: Mapping[str, int]
    ended: Mapping[str, int]


def parse_counts(text: str) -> Counts:
    """What of a /metrics matters here."""
    in_engine: dict[str, int] = {}
    tokens_made: dict[str, int] = {}
    ended: dict[str, int] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels, value = sample.labels, int(sample.value)
            match sample.name:
                case "headrace_engine_requests_running" | "headrace_engine_requests_waiting":
                    in_engine[labels["model"]] = in_engine.get(labels["model"], 0) + value
                case "headrace_engine_generation_tokens_total":
                    tokens_made[labels["model"]] = value
                case "headrace_requests_total" if labels["route"] == Api.CHAT.path:
                    ended[labels["status"]] = value
                case _:
                    pass
    return Counts(in_engine, tokens_made, ended)


def parse_private_bytes(status: str) -> int:
    """RssAnon + VmSwap of a /proc/PID/status: what a process has of its own, resident or swapped out."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmSwap") if name in fields)


class LimitsServer:
    """A running server. `serving` makes it."""

    def __init__(self, program: Program, side: Side) -> None:
        self.side = side
        self._program = program

    @property
    def endpoint(self) -> Endpoint:
        return self._program.endpoint

    async def while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """See `Program.while_alive`."""
        return await self._program.while_alive(work)

    async def counts(self) -> Counts:
        """Ask /metrics.

        Raises:
            ServerFailed: no answer.
        """
        try:
            reply = await fetch(self.endpoint, "/metrics", timeout_seconds=10)
        except ExchangeFailed as error:
            raise self._program.failed(f"/metrics: {error}") from error
        return parse_counts(reply.body.decode())

    def private_bytes(self) -> int:
        """RssAnon + VmSwap of the server process.

        Raises:
            ServerFailed: it has ended.
        """
        try:
            status = (PROC / str(self._program.processes.leader) / "status").read_text(encoding="utf-8")
        except OSError as error:
            raise self._program.failed("has ended") from error
        return parse_private_bytes(status)

    async def settled_counts(self) -> Counts:
        """The counts once no request is in any engine, or after 30 s."""
        for _ in range(round(_REST_SECONDS / METRICS_SECONDS)):
            await asyncio.sleep(METRICS_SECONDS)
            counts = await self.counts()
            if not any(counts.in_engine.values()):
                break
        return counts


@asynccontextmanager
async def serving(
    folder: Path, *, itl_ms: float, other_models: Mapping[str, float] | None = None, **settings: object
) -> AsyncIterator[LimitsServer]:
    """A server that has answered once; it is ended when the context is left.

    Args:
        folder: for its configuration and its log.
        itl_ms: between two tokens of the model that is measured.
        other_models: further models, with theirs.
        settings: of the section `server`.

    Raises:
        ServerFailed: it does not start.
    """
    paces = {MODEL_NAME: itl_ms, **(other_models or {})}
    models = [{"id": name, "engine": "synthetic", "synthetic": {"itl_ms": pace}} for name, pace in paces.items()]
    subject = Subject(json.dumps({"server": settings, "models": models}), (), folder, on_cpu=True)
    program = await Program.launch(SideName.HEADRACE, subject, folder)
    with _ended_with_us(program.processes.leader):
        try:
            yield LimitsServer(program, await start_side(program, lambda *_: None))
        finally:
            await program.stop()


@contextmanager
def _ended_with_us(pid: ProcessId) -> Iterator[None]:
    """Kill a process if this program ends, however it does, before the context is left."""
    shell = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "guard", str(pid)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        shell.communicate(b"\n")


@contextmanager
def enough_open_files(needed: int) -> Iterator[None]:
    """Let this process and those it starts have so many files open each, until the context is left.

    Raises:
        UsageError: the limit of this machine is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UsageError(f"this needs {needed} open files for each process, and {hard} are allowed (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
