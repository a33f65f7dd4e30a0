"""`headrace usage`: what each tenant of the running server has used, by model and day."""

import asyncio
import json
from collections.abc import Iterator

import typer

from headrace_server.api.admin_documents import UsageReport
from headrace_server.cli.operator_client import Whereabouts, open_operator
from headrace_server.cli.text_table import table_lines

_COLUMNS = ("DAY", "TENANT", "MODEL", "REQUESTS", "PROMPT", "CACHED", "OUTPUT")


def print_usage(where: Whereabouts, num_days: int, *, as_json: bool) -> None:
    """Print the counts of the last days, today among them."""
    report = asyncio.run(_ask(where, num_days))
    if as_json:
        typer.echo(json.dumps(report.model_dump(mode="json"), indent=2))
        return
    for line in lines(report):
        typer.echo(line)


async def _ask(where: Whereabouts, num_days: int) -> UsageReport:
    async with open_operator(where) as operator:
        return await operator.usage(num_days)


def lines(report: UsageReport) -> Iterator[str]:
    """The table; PROMPT is what was computed of the prompts, CACHED what was at hand."""
    rows = [
        (
            count.day.isoformat(),
            count.tenant,
            count.model,
            str(count.requests),
            str(count.computed_prompt_tokens),
            str(count.cached_prompt_tokens),
            str(count.output_tokens),
        )
        for count in report.usage
    ]
    yield from table_lines([_COLUMNS, *rows])
