"""`headrace ps`: which models of the running server are in memory or on their way there, and what they take of it."""

import asyncio
import json
from collections.abc import Iterable, Iterator

import typer

from headrace_server.api.admin_documents import AdminModel, AdminModels, Memory, Weights
from headrace_server.cli.operator_client import Whereabouts, open_operator
from headrace_server.cli.progress_display import duration_text, percent, size_text
from headrace_server.cli.text_table import table_lines
from headrace_server.domain import ModelState

_COLUMNS = ("MODEL", "STATE", "MEMORY", "REQUESTS", "HELD", "IDLE/KEEP", "PIN", "DETAIL")


def print_residents(where: Whereabouts, *, everything: bool, as_json: bool) -> None:
    """Print the table, of all models with `everything`."""
    document = asyncio.run(_ask(where))
    shown = [model for model in document.models if everything or is_shown(model)]
    if as_json:
        answer = AdminModels(memory=document.memory, models=shown, cached=[]).model_dump(mode="json")
        typer.echo(json.dumps({name: answer[name] for name in ("memory", "models")}, indent=2))
        return
    for line in lines(shown, document.memory):
        typer.echo(line)


async def _ask(where: Whereabouts) -> AdminModels:
    async with open_operator(where) as operator:
        return await operator.models()


def is_shown(model: AdminModel) -> bool:
    """Whether a model is in memory, on its way, or in trouble."""
    return model.state is not ModelState.COLD or model.memory_bytes is not None


def lines(models: Iterable[AdminModel], memory: Memory) -> Iterator[str]:
    """The table, and under it what is in use of the memory."""
    yield from table_lines([_COLUMNS, *map(_cells, models)])
    budget = "" if memory.budget_bytes is None else f" of {size_text(memory.budget_bytes)}"
    yield f"{size_text(memory.used_bytes)}{budget} in use"


def _cells(model: AdminModel) -> tuple[str, ...]:
    cells = (
        model.id,
        model.state.value,
        "" if model.memory_bytes is None else size_text(model.memory_bytes),
        str(model.num_leases),
        str(model.num_held),
        _idle(model),
        "pinned" if model.pinned else "",
        detail(model),
    )
    return tuple(cell or "-" for cell in cells)


def _idle(model: AdminModel) -> str:
    """How long it has been idle, and how long it may be."""
    idle = "" if model.idle_seconds is None else duration_text(model.idle_seconds)
    keep = "" if model.keep_alive_seconds is None else duration_text(model.keep_alive_seconds)
    return f"{idle or '-'}/{keep or '-'}" if idle or keep else ""


def detail(model: AdminModel) -> str:
    """What there is to say beside the state, in one line."""
    parts = [model.detail]
    if model.state is ModelState.FETCHING and model.weights is not None:
        parts.append(_fetched(model.weights))
    if model.eta_seconds is not None:
        parts.append(f"about {duration_text(model.eta_seconds)}")
    if model.retry_in_seconds:
        parts.append(f"again in {duration_text(model.retry_in_seconds)}")
    line = ", ".join(filter(None, parts))
    return "".join(c if c.isprintable() else " " for c in line)


def _fetched(weights: Weights) -> str:
    return f"{percent(weights.present_bytes, weights.total_bytes)} % of {size_text(weights.total_bytes)}"
