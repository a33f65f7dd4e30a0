"""One side of a measurement: a server that is asked over HTTP, block after block.

A side that gives no answer at all, or whose process ends, raises `SideFailed`; refusals and single failures are
counted.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from headrace_server.bench import measures
from headrace_server.bench.arrivals import BlockPlan, Load
from headrace_server.bench.endpoint import Api, Endpoint, http_request
from headrace_server.bench.generator import send_block
from headrace_server.bench.http_client import ConnectionPool, fetch
from headrace_server.bench.http_reply import ExchangeFailed, Reply
from headrace_server.bench.measures import Measure
from headrace_server.bench.outcomes import error_message
from headrace_server.bench.process_table import CpuSource
from headrace_server.bench.processes import ServerProcesses
from headrace_server.bench.summary import BlockResult, Slo, summarise
from headrace_server.errors import HeadraceError, UsageError


class SideFailed(HeadraceError):
    """A server ended or answers no more; what was measured before stands."""


class Side(Protocol):
    """What takes turns. `processes` is None where they are not this machine's, or not ours to look at."""

    @property
    def name(self) -> str: ...

    @property
    def processes(self) -> ServerProcesses | None: ...

    async def run_block(self, load: Load, number: int) -> BlockResult:
        """Warm up, then measure block `number` of a load.

        Raises:
            SideFailed: there is nothing to measure any more.
        """
        ...


@dataclass(frozen=True, slots=True)
class Asking:
    """How a server is asked. `model` empty: the first one that it lists."""

    api: Api = Api.CHAT
    model: str = ""
    api_key: str | None = None
    timeout_seconds: float = 120.0


class HttpSide:
    """See `Side`. Prepared by `open_side`, which has checked that it answers."""

    def __init__(
        self, name: str, endpoint: Endpoint, asking: Asking, *, slo: Slo, processes: ServerProcesses | None
    ) -> None:
        self.name = name
        self.processes = processes
        self.model = asking.model
        self._endpoint = endpoint
        self._asking = asking
        self._slo = slo

    async def run_block(self, load: Load, number: int) -> BlockResult:
        with ConnectionPool(self._endpoint) as pool:
            if load.num_warm_up:
                self._check(await self._measure(pool, load.warm_up(number), stream=load.stream))
            meter = CpuMeter(self.processes)
            result = await self._measure(pool, load.block(number), stream=load.stream)
            cpu_seconds = meter.seconds()
        self._check(result)
        figures = {**result.figures, **process_figures(self.processes, cpu_seconds, result.num_tokens)}
        return replace(result, figures=figures)

    async def _measure(self, pool: ConnectionPool, plan: BlockPlan, *, stream: bool) -> BlockResult:
        requests = self._requests(plan, stream=stream)
        traffic = await send_block(pool, plan, requests, timeout_seconds=self._asking.timeout_seconds)
        return summarise(traffic, plan, stream=stream, slo=self._slo)

    def _requests(self, plan: BlockPlan, *, stream: bool) -> Sequence[bytes]:
        asking = self._asking
        documents = (
            asking.api.document(asking.model, request.prompt, num_tokens=request.num_tokens, stream=stream)
            for request in plan.requests
        )
        return [
            http_request(self._endpoint, asking.api.path, document, api_key=asking.api_key) for document in documents
        ]

    def _check(self, result: BlockResult) -> None:
        """Raise SideFailed where nothing more can be expected of this server."""
        reason = next((text for text, _ in result.tally.reasons.most_common(1)), "nothing was answered")
        if self.processes is not None and result.tally.num_failed and not self.processes.is_alive:
            raise SideFailed(f"{self.name} has ended: {reason}")
        if result.tally.num_complete == 0:
            raise SideFailed(f"{self.name} completed none of {result.tally.num_sent} requests: {reason}")


class CpuMeter:
    """Processor time of a server from now on."""

    def __init__(self, processes: ServerProcesses | None) -> None:
        self._processes = processes
        self._before = processes.cpu_seconds() if processes else (0.0, CpuSource.TICKS)

    def seconds(self) -> float | None:
        """Since this meter was made; None where nothing can be read, or was read in two ways."""
        if self._processes is None:
            return None
        after, source = self._processes.cpu_seconds()
        before, source_before = self._before
        return after - before if source is source_before else None


def process_figures(
    processes: ServerProcesses | None, cpu_seconds: float | None, num_tokens: int
) -> dict[Measure, float]:
    """What the kernel says about a side after a block of so many tokens; nothing where its processes are not known."""
    if processes is None:
        return {}
    server, tree = processes.memory()
    figures = {
        measures.SERVER_PEAK_RSS: float(server.peak_bytes),
        measures.SERVER_RSS: float(server.resident_bytes),
        measures.SERVER_ANON_RSS: float(server.anonymous_bytes),
        measures.TREE_PEAK_RSS: float(tree.peak_bytes),
        measures.TREE_ANON_RSS: float(tree.anonymous_bytes),
    }
    if cpu_seconds is not None and num_tokens:
        figures[measures.SERVER_CPU] = cpu_seconds / num_tokens
    return figures


async def open_side(
    name: str, endpoint: Endpoint, asking: Asking, *, slo: Slo, processes: ServerProcesses | None
) -> HttpSide:
    """A side that has just answered one request of one token.

    Raises:
        UsageError: no connection, no such model, no key, or another refusal; the message says which.
    """
    model = asking.model or await _first_model(name, endpoint, asking)
    asking = replace(asking, model=model)
    document = asking.api.document(model, f"warm up {time.time_ns()}", num_tokens=1, stream=False)
    reply = await _fetch(name, endpoint, asking, path=asking.api.path, document=document)
    if reply.status != 200:
        raise UsageError(f"{name}: model {model!r}: {_refusal(reply)}")
    return HttpSide(name, endpoint, asking, slo=slo, processes=processes)


async def _first_model(name: str, endpoint: Endpoint, asking: Asking) -> str:
    reply = await _fetch(name, endpoint, asking, path="/v1/models")
    if reply.status != 200:
        raise UsageError(f"{name}: /v1/models {_refusal(reply)}; --model names one")
    try:
        return str(json.loads(reply.body)["data"][0]["id"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(f"{name}: /v1/models lists no model; --model names one") from error


async def _fetch(name: str, endpoint: Endpoint, asking: Asking, *, path: str, document: object = None) -> Reply:
    try:
        reply = await fetch(endpoint, path, document, api_key=asking.api_key, timeout_seconds=asking.timeout_seconds)
    except ExchangeFailed as error:
        raise UsageError(f"{name}: {endpoint.authority}: {error}") from error
    if reply.status == 401:
        raise UsageError(f"{name}: {_refusal(reply)}; --api-key or OPENAI_API_KEY takes a key")
    return reply


def _refusal(reply: Reply) -> str:
    return f"answered {reply.status}: {error_message(reply.body)}"
