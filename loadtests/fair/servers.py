"""The two servers of the real half: Headrace with two tenants and a key for each, and vLLM's own server."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace_server.bench.endpoint import Api
from headrace_server.bench.http_client import fetch
from headrace_server.bench.http_reply import ExchangeFailed
from headrace_server.bench.outcomes import error_message
from headrace_server.bench.side import SideFailed
from headrace_server.settings.schema import LoadWhen
from loadtests.fair.traffic import Sender
from loadtests.launcher import Program
from loadtests.swap import servers
from loadtests.swap.subjects import FIRST, configuration

MODEL = FIRST
KEYS: Mapping[str, str] = {"light": "hr-bench-light-4f1c93d07a", "flood": "hr-bench-flood-b82e6a5d13"}

_START_SECONDS = 180.0
_RETRY_SECONDS = 0.05
_ANSWER_SECONDS = 120.0
_NEVER_GETS_BETTER = frozenset({400, 401, 403, 404, 405, 413, 415, 422})


@dataclass(frozen=True, slots=True)
class Server:
    """A server that has answered."""

    program: Program
    sender: Sender


@asynccontextmanager
async def headrace(folder: Path, cache: Path) -> AsyncIterator[Server]:
    """A Headrace with a tenant for each key; `folder` is this start's own. Raises ServerFailed."""
    async with servers.headrace(_configuration(folder, cache), folder) as server:
        yield await _answering(server.program)


def _configuration(folder: Path, cache: Path) -> str:
    keys = folder / "keys"
    keys.write_text("".join(f"{key} {tenant}\n" for tenant, key in KEYS.items()), encoding="utf-8")
    keys.chmod(0o600)
    document = json.loads(configuration([MODEL.settings(LoadWhen.STARTUP)], folder, cache=cache))
    document["tenants"] = [{"id": tenant} for tenant in KEYS]
    document["auth"] = {"keys_file": str(keys)}
    return json.dumps(document)


@asynccontextmanager
async def vllm(folder: Path, engine_line: tuple[str, ...], most_requests: int | None) -> AsyncIterator[Server]:
    """vLLM's own server, which refuses requests beyond so many in it; None: none. Raises ServerFailed."""
    limit = () if most_requests is None else ("--max-num-queued-reqs", str(most_requests))
    async with servers.vllm((*engine_line, *limit), folder) as program:
        yield await _answering(program)


async def _answering(program: Program) -> Server:
    try:
        async with asyncio.timeout(_START_SECONDS):
            await program.while_alive(_first_answer(program))
    except TimeoutError as error:
        raise program.failed(f"no answer within {_START_SECONDS:g} s") from error
    return Server(program, Sender(program.endpoint, MODEL.id, KEYS, timeout_seconds=_ANSWER_SECONDS))


async def _first_answer(program: Program) -> None:
    document = Api.COMPLETIONS.document(MODEL.id, "Say something.", num_tokens=1, stream=False)
    while True:
        try:
            reply = await fetch(program.endpoint, Api.COMPLETIONS.path, document, api_key=KEYS["light"])
        except ExchangeFailed:
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        if reply.status == 200:
            return
        if reply.status in _NEVER_GETS_BETTER:
            raise SideFailed(f"answered {reply.status}: {error_message(reply.body)}")
        await asyncio.sleep(_RETRY_SECONDS)
