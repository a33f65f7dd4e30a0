"""Starts servers for the row `first-token`, and times them: from process start to the first text of a streamed answer.

Every side gets the same engine arguments and is asked the same way: a streamed chat completion every 50 ms until one is
answered with 200. What it answers is kept: a side that answers with another text has loaded something else.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from headrace_server.bench.endpoint import Api, Endpoint
from headrace_server.bench.http_client import fetch
from headrace_server.bench.http_reply import ExchangeFailed, Reply
from headrace_server.bench.side import SideFailed
from loadtests.cache_children import ended_with_us
from loadtests.launcher import MODEL_NAME, Program, SideName, Subject

NUM_TOKENS = 8
START_TIMEOUT_SECONDS = 180.0

_RETRY_SECONDS = 0.05
_SHARED_MEMORY = re.compile(r"(/dev/shm/\S+)$", re.MULTILINE)
_NEVER_GETS_BETTER = frozenset({400, 401, 403, 404, 405, 413, 415, 422})


@dataclass(frozen=True, slots=True)
class FirstToken:
    """When the first text came, in seconds from process start, and all of the answer."""

    seconds: float
    text: str


@asynccontextmanager
async def headrace(source: str, cache_dir: Path, folder: Path) -> AsyncIterator[Program]:
    """A Headrace that serves one model; ended when the context is left, and when this program ends before that."""
    configuration = {"cache": {"dir": str(cache_dir)}, "models": [{"id": MODEL_NAME, "source": source}]}
    subject = Subject(json.dumps(configuration), (), folder, on_cpu=True)
    async with _ended(await Program.launch(SideName.HEADRACE, subject, folder)) as program:
        yield program


@asynccontextmanager
async def command(line: Sequence[str], endpoint: Endpoint, folder: Path) -> AsyncIterator[Program]:
    """Any other command that becomes a server on `endpoint`; ended likewise."""
    async with _ended(await Program.spawn(SideName.VLLM, line, endpoint, folder)) as program:
        yield program


def with_environment(environment: Mapping[str, str], line: Sequence[str]) -> list[str]:
    """A command line that runs another one with exactly this environment, as far as it differs from ours."""
    hidden = [part for name in sorted(os.environ.keys() - environment.keys()) for part in ("-u", name)]
    changed = [f"{name}={value}" for name, value in environment.items() if os.environ.get(name) != value]
    return ["env", *hidden, *changed, *line]


async def first_token(program: Program) -> FirstToken:
    """Ask until it answers.

    Raises:
        ServerFailed: it ended, refused, or did not answer within 180 s.
    """
    try:
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            return await program.while_alive(_ask(program))
    except TimeoutError as error:
        raise program.failed(f"no answer within {START_TIMEOUT_SECONDS:g} s") from error


async def _ask(program: Program) -> FirstToken:
    document = Api.CHAT.document(MODEL_NAME, "Say something.", num_tokens=NUM_TOKENS, stream=True)
    while True:
        try:
            reply = await fetch(program.endpoint, Api.CHAT.path, document)
        except ExchangeFailed:
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        if reply.status == 200:
            return first_text(reply, program.launched_at)
        if reply.status in _NEVER_GETS_BETTER:
            raise SideFailed(f"answered {reply.status}: {reply.body[:300].decode(errors='replace')}")
        await asyncio.sleep(_RETRY_SECONDS)


def first_text(reply: Reply, began: float) -> FirstToken:
    """When the first text of a streamed answer came, and all of it. Raises SideFailed where there is none."""
    texts, first = [], None
    for event in reply.events():
        text = "" if event.data == b"[DONE]" else "".join(_texts(json.loads(event.data)))
        if text and first is None:
            first = event.at
        texts.append(text)
    if first is None:
        raise SideFailed("answered without any text")
    return FirstToken(first - began, "".join(texts))


def _texts(event: Mapping[str, list[Mapping[str, Mapping[str, str | None]]]]) -> Iterator[str]:
    for choice in event.get("choices", ()):
        yield choice.get("delta", {}).get("content") or ""


@asynccontextmanager
async def _ended(program: Program) -> AsyncIterator[Program]:
    with ended_with_us(program.processes.leader):
        try:
            yield program
        finally:
            shared = shared_memory(entry.pid for entry in program.processes.entries())
            await program.stop()
            for path in shared:
                path.unlink(missing_ok=True)


def shared_memory(pids: Iterable[int]) -> frozenset[Path]:
    """The named shared memory that processes have: vLLM's own server leaves some behind, a quarter of a GiB by name."""
    found: set[str] = set()
    for pid in pids:
        with suppress(OSError):  # that one has just ended
            found.update(_SHARED_MEMORY.findall(Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")))
    return frozenset(map(Path, found))
