"""`headrace load`, `unload` and `pin`: models of the running server into memory, out of it, and kept there.

While the server works, its events are followed, so that a load shows what it waits for. Ctrl-C ends the waiting only.
"""

import asyncio
import time

import typer

from headrace_server.api.admin_documents import AdminModel
from headrace_server.cli.memory_view import detail
from headrace_server.cli.operator_client import Operator, Whereabouts, open_operator
from headrace_server.cli.progress_display import ProgressDisplay, duration_text, open_display, size_text
from headrace_server.domain import ModelState
from headrace_server.errors import HeadraceError

EXIT_FAILED = 1

_QUIET = frozenset({ModelState.COLD, ModelState.READY, ModelState.FAILED})  # the last line says it


def load_model(model: str, where: Whereabouts) -> int:
    """Bring a model into memory, with progress on standard error. Returns the exit code."""
    began = time.monotonic()
    done = _moved(model, "load", where)
    if done is None:
        return EXIT_FAILED
    memory = f", {size_text(done.memory_bytes)} of memory" if done.memory_bytes else ""
    typer.echo(f"{done.id} is {done.state.value} after {duration_text(time.monotonic() - began)}{memory}")
    return 0


def unload_model(model: str, where: Whereabouts) -> int:
    """Take a model out of memory. Returns the exit code."""
    done = _moved(model, "unload", where)
    if done is None:
        return EXIT_FAILED
    is_out = done.state in (ModelState.COLD, ModelState.FAILED)
    typer.echo(f"{done.id} is not in memory" if is_out else f"{done.id} was unloaded and is {done.state.value} again")
    return 0


def pin_model(model: str, where: Whereabouts, *, pinned: bool) -> None:
    """Say whether a model may leave memory for another one."""
    done = asyncio.run(_act(model, "pin" if pinned else "unpin", where))
    typer.echo(f"{done.id} is pinned until the server ends" if done.pinned else f"{done.id} is not pinned")


async def _act(model: str, action: str, where: Whereabouts) -> AdminModel:
    async with open_operator(where) as operator:
        return await operator.act(model, action)


def _moved(model: str, action: str, where: Whereabouts) -> AdminModel | None:
    """The model afterwards; None: the user has had enough."""
    try:
        with open_display(model) as display:
            return asyncio.run(_move(model, action, where, display))
    except KeyboardInterrupt:
        typer.echo(f"headrace: interrupted; the server goes on to {action} {model}", err=True)
        return None


async def _move(model: str, action: str, where: Whereabouts, display: ProgressDisplay) -> AdminModel:
    async with open_operator(where) as operator:
        following = asyncio.ensure_future(follow(operator, model, display))
        try:
            return await operator.act(model, action)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def follow(operator: Operator, name: str, display: ProgressDisplay) -> None:
    """Show how a model gets on, until the server ends."""
    shown = ""
    try:
        async for model in operator.events():
            if name in (model.id, *model.aliases):
                shown = _show(model, shown, display)
    except HeadraceError:
        return  # whoever waits for the answer learns it too


def _show(model: AdminModel, shown: str, display: ProgressDisplay) -> str:
    """A line for what is new, figures for what moves. Returns what has been said."""
    if model.state in _QUIET:
        return shown
    weights = model.weights
    if weights is not None and weights.total_bytes and not weights.complete:
        display.show(
            weights.present_bytes, weights.total_bytes, rate=weights.bytes_per_second, eta_seconds=weights.eta_seconds
        )
    news = f"{model.state.value}{f': {model.detail}' if model.detail else ''}"
    if news != shown:
        eta = model.state is not ModelState.FETCHING and model.eta_seconds is not None
        display.note(f"{model.state.value}: {detail(model)}" if eta else news)
    return news
