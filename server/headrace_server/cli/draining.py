"""`headrace drain`: take the running server out of service without losing a request, and see how it gets on."""

import asyncio
import math
import time
from pathlib import Path

import typer

from headrace_server.cli.control_socket import is_live
from headrace_server.cli.operator_client import Operator, Whereabouts, open_operator
from headrace_server.errors import HeadraceError, UsageError

EXIT_FAILED = 1

_LOOK_SECONDS = 0.5
# For the server to stop listening once it has answered: then its port is free.
_GONE_SECONDS = 10.0
_GONE_LOOK_SECONDS = 0.02


def drain_server(where: Whereabouts, deadline_seconds: float | None) -> int:
    """Drain the server and wait. Returns the exit code: 1 where requests were cut.

    Raises:
        UsageError: the deadline is no number of seconds.
    """
    if deadline_seconds is not None and not math.isfinite(deadline_seconds):
        raise UsageError(f"--deadline {deadline_seconds} is not a number of seconds")
    try:
        num_cut, socket = asyncio.run(_drain(where, deadline_seconds))
        wait_until_gone(socket)
    except KeyboardInterrupt:
        typer.echo("headrace: interrupted; the server goes on draining", err=True)
        return EXIT_FAILED
    if num_cut:
        typer.echo(f"headrace: drained, but {counted(num_cut)} had to be cut", err=True)
        return EXIT_FAILED
    typer.echo("drained")
    return 0


async def _drain(where: Whereabouts, deadline_seconds: float | None) -> tuple[int, Path | None]:
    """How many requests were cut, and where the server listened, if on this machine."""
    async with open_operator(where) as operator:
        draining = asyncio.ensure_future(operator.drain(deadline_seconds))
        try:
            await _tell_until(draining, operator)
        finally:
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)
        return draining.result(), operator.socket


async def _tell_until(draining: "asyncio.Future[int]", operator: Operator) -> None:
    told = None
    while not (await asyncio.wait({draining}, timeout=_LOOK_SECONDS))[0]:
        try:
            num_open = (await operator.drain_status()).num_open
        except HeadraceError:
            continue  # it is going away; the answer to the drain says how
        if num_open != told:
            typer.echo(f"waiting for {counted(num_open)}", err=True)
            told = num_open


def wait_until_gone(socket: Path | None) -> None:
    """Wait until a server of this machine listens no more."""
    until = time.monotonic() + _GONE_SECONDS
    while socket is not None and is_live(socket) and time.monotonic() < until:
        time.sleep(_GONE_LOOK_SECONDS)


def counted(num_requests: int) -> str:
    """`1 request`, `2 requests`."""
    return f"{num_requests} request{'' if num_requests == 1 else 's'}"
