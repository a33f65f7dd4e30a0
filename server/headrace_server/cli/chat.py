"""`headrace run`: a prompt or a conversation in the terminal, streamed.

The model is reached through the running server where there is one that has it, else through an engine that lives as
long as the command. Both give server-sent events of the same form, so there is one reader.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import TypeAlias

import httpx
import typer

from headrace_server.catalog import model_settings_of
from headrace_server.cli.operator_client import key_headers
from headrace_server.cli.serving import setup_logging
from headrace_server.domain import (
    EngineRequest,
    ModelId,
    ModelState,
    ModelStatus,
    Operation,
    RequestId,
    StreamReply,
)
from headrace_server.errors import EngineFault, HeadraceError, UsageError
from headrace_server.runtime import Progress, Reporting, Runtime, open_runtime, plan_runtime
from headrace_server.settings.loading import load_settings
from headrace_server.settings.schema import LoadWhen, Settings
from headrace_server.tenancy.keys import EVERYONE

Messages: TypeAlias = list[dict[str, str]]
Ask: TypeAlias = Callable[[Messages], AsyncIterator[str]]

_PROBE_SECONDS = 1.0
# A model that is not in memory is loaded for whoever asks.
_SERVED = frozenset(
    state.value for state in (ModelState.READY, ModelState.COLD, ModelState.FETCHING, ModelState.LOADING)
)


def run_chat(
    model: str, prompt: str | None, *, config: Path | None = None, max_tokens: int, key: str | None = None
) -> int:
    """Answer one prompt, or chat until Ctrl-D; a running server is shown `key`. Returns the exit code."""
    settings, headers = load_settings(config=config), key_headers(key)
    try:
        asyncio.run(_chat(settings, headers, model, prompt, max_tokens))
    except KeyboardInterrupt:
        typer.echo("", err=True)
    return 0


async def _chat(
    settings: Settings, headers: Mapping[str, str], model: str, prompt: str | None, max_tokens: int
) -> None:
    async with _open_model(settings, headers, model, max_tokens) as ask:
        if prompt is not None:
            await _answer(ask, [{"role": "user", "content": prompt}])
            return
        await _converse(ask)


async def _converse(ask: Ask) -> None:
    typer.echo("Ctrl-D leaves, /clear forgets the conversation.", err=True)
    messages: Messages = []
    while (line := await asyncio.to_thread(_read_line)) is not None:
        if line.strip() == "/clear":
            messages = []
        elif line.strip():
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": await _answer(ask, messages)})


def _read_line() -> str | None:
    try:
        return input(">>> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


async def _answer(ask: Ask, messages: Messages) -> str:
    pieces: list[str] = []
    async for piece in ask(messages):
        pieces.append(piece)
        typer.echo(piece, nl=False)
    typer.echo("")
    return "".join(pieces)


@asynccontextmanager
async def _open_model(
    settings: Settings, headers: Mapping[str, str], model: str, max_tokens: int
) -> AsyncIterator[Ask]:
    """Something to ask: the running server if it has the model, else an engine of our own."""
    base = f"http://{settings.server.host}:{settings.server.port}"
    async with httpx.AsyncClient(base_url=base, headers=headers, trust_env=False, timeout=None) as client:
        if await _serves(client, model):
            yield lambda messages: _ask_server(client, _body(model, messages, max_tokens))
            return
    async with _own_engine(settings, model) as (runtime, name):
        yield lambda messages: _ask_engine(runtime, _body(name, messages, max_tokens))


async def _serves(client: httpx.AsyncClient, model: str) -> bool:
    try:
        answer = await client.get("/v1/models", timeout=_PROBE_SECONDS)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise HeadraceError(f"the server at {client.base_url} wants a key: set HEADRACE_API_KEY")
        models = answer.json()["data"] if answer.is_success else []
        return any(model in (m["id"], *m.get("aliases", ())) and m.get("state") in _SERVED for m in models)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False  # no server, or not one of ours


@asynccontextmanager
async def _own_engine(settings: Settings, model: str) -> AsyncIterator[tuple[Runtime, ModelId]]:
    configured = [m for m in settings.models if model in (m.id, *m.aliases)]
    found = configured[0] if configured else model_settings_of(model)
    chosen = [found.model_copy(update={"load": LoadWhen.STARTUP})]
    setup_logging(settings.telemetry.model_copy(update={"log_level": "error"}))
    loaded: asyncio.Future[tuple[ModelStatus, ...]] = asyncio.get_running_loop().create_future()
    progress = Progress(on_change=_show_progress, on_settled=loaded.set_result)
    own = Settings.model_validate({**settings.model_dump(), "models": chosen})
    async with open_runtime(plan_runtime(own), Reporting(), progress) as runtime:
        status = (await loaded)[0]
        if status.state is not ModelState.READY:
            raise UsageError(f"{status.id}: {status.detail}")
        yield runtime, status.id


def _show_progress(status: ModelStatus) -> None:
    if sys.stderr.isatty():
        typer.echo(f"{status.id}: {status.state.value}", err=True)


def _body(model: str, messages: Messages, max_tokens: int) -> dict[str, object]:
    return {"model": model, "messages": messages, "stream": True, "max_tokens": max_tokens}


async def _ask_engine(runtime: Runtime, body: dict[str, object]) -> AsyncIterator[str]:
    request = EngineRequest(
        operation=Operation.CHAT,
        model=ModelId(str(body["model"])),
        request_id=RequestId(token_hex(16)),
        caller=EVERYONE,
        payload=body,
        stream=True,
    )
    reply = await runtime.inference.submit(request)
    if not isinstance(reply, StreamReply):
        raise EngineFault("the engine did not stream")
    async with aclosing(reply.events):
        async for frames in reply.events:
            for line in frames.decode().splitlines():
                if (piece := text_of(line)) is not None:
                    yield piece


async def _ask_server(client: httpx.AsyncClient, body: dict[str, object]) -> AsyncIterator[str]:
    async with client.stream("POST", Operation.CHAT.value, json=body) as answer:
        if not answer.is_success:
            raise HeadraceError(f"the server answered {answer.status_code}: {_message(await answer.aread())}")
        async for line in answer.aiter_lines():
            if (piece := text_of(line)) is not None:
                yield piece


def text_of(line: str) -> str | None:
    """The text in one line of a chat stream, or None.

    Raises:
        HeadraceError: the line carries an error.
    """
    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
    if not data or data == "[DONE]":
        return None
    event = json.loads(data)
    if "error" in event:
        raise HeadraceError(event["error"]["message"])
    choices = event.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content")


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
