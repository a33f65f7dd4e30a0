"""Row `real`: a light tenant beside a flood, and four times the load, on vLLM, beside vLLM's own server.

Both sides have the same engine, arguments, requests and machine, and take turns; who has no turn is stopped with all
of its processes. vLLM's server knows no tenants: it gets the same two streams of requests. It has the best of some
values of `--max-num-queued-reqs`, by the good answers that it gives a second at four times the load; without a bound,
its default, it is shown once. A *full step* is what `max_num_batched_tokens` of a prompt take.
"""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from headrace_server.bench.measures import Measure
from headrace_server.bench.stats import Target, median, paired_ratios, percentile
from headrace_server.bench.summary import Slo
from headrace_server.bench.turns import Turns
from headrace_server.domain import ServiceClass
from loadtests.cache_served import WrongResult
from loadtests.fair.answers import Answer, goodput, of_tenant, refusals, ttft
from loadtests.fair.findings import (
    MILLISECONDS,
    RATE,
    RATIO,
    SECONDS,
    SHARE,
    STEPS,
    TOKEN_RATE,
    Findings,
    at_least,
    at_most,
)
from loadtests.fair.loads import Ask, Due, poisson, together
from loadtests.fair.servers import MODEL, Server, headrace, vllm
from loadtests.fair.traffic import Sent
from loadtests.swap.subjects import engine_lines

LIGHT, FLOOD = "light", "flood"
OURS, THEIRS, UNBOUNDED = "Headrace", "vLLM", "vLLM without a bound"

_LIGHT_ASK = Ask(LIGHT, num_prompt_tokens=64, num_output_tokens=16)
_FLOOD_ASK = Ask(FLOOD, num_prompt_tokens=64, num_output_tokens=16)
_CLIENT_ASK = Ask(FLOOD, num_prompt_tokens=64, num_output_tokens=16, service_class=ServiceClass.INTERACTIVE)
_FOLD = 16
_LIGHT_SHARE = 1 / 8
_OVERLOAD = 4.0
_NUM_STREAMS, _NUM_STREAMED = 32, 128
# Few enough that nobody waits for long, enough that the engine is not idle.
_NUM_PEAK_STREAMS, _NUM_PEAK_STREAMED = 16, 96
_NUM_FULL_STEPS = 3
_NUM_WARM_UP, _NUM_WARM_UP_STREAMS = 16, 8
_WARM_UP_SHARE = 0.2
_DEFAULT_STEP_TOKENS = 2048
_SLO = Slo()
_MOST_STEPS = 2.0
_LEAST_THROUGHPUT, _LEAST_GOODPUT = 0.97, 0.90
_MOST_REFUSAL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Times:
    """How long each part lasts. The flood comes from `flood_begin` to `flood_end` of `flood_seconds`."""

    alone_seconds: float = 12.0
    flood_seconds: float = 28.0
    flood_begin: float = 4.0
    flood_end: float = 22.0
    overload_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class RealOptions:
    """What is measured. `limits` are the values of `--max-num-queued-reqs` that are tried; empty: Headrace alone."""

    num_runs: int = 2
    limits: tuple[int, ...] = (8, 32, 16)
    times: Times = field(default_factory=Times)


@dataclass(slots=True)
class _Figures:
    """Of one side, a value for each run."""

    peak: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    flooded: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    throughput: list[float] = field(default_factory=list)
    goodput: list[float] = field(default_factory=list)
    refusal: list[float] = field(default_factory=list)


async def measure_real(options: RealOptions, scratch: Path, tell: Callable[[str], None]) -> Findings:
    """The whole row. Raises HeadraceError."""
    tell("  preparing the model")
    cache = scratch / "cache"
    line = (await engine_lines([MODEL], cache))[MODEL.id]
    with Turns() as turns:
        async with AsyncExitStack() as stack:
            measurement = _Measurement(options, turns, scratch, line, tell)
            return await measurement.run(stack, cache)


class _Measurement:
    """The state of one run."""

    def __init__(
        self, options: RealOptions, turns: Turns, scratch: Path, line: tuple[str, ...], tell: Callable[[str], None]
    ) -> None:
        self._options = options
        self._times = options.times
        self._turns = turns
        self._scratch = scratch
        self._line = line
        self._tell = tell
        self._findings = Findings()
        self._figures = {OURS: _Figures(), THEIRS: _Figures()}
        self._servers: dict[str, Server] = {}
        self._capacity = 0.0
        self._num_late = 0

    async def run(self, stack: AsyncExitStack, cache: Path) -> Findings:
        ours = await stack.enter_async_context(headrace(self._folder("headrace"), cache))
        self._enter(stack, OURS, ours)
        step_seconds = await self._full_step_seconds()
        await self._peak(OURS)
        self._capacity = await self._most_per_second()
        self._tell(f"  a full step takes {step_seconds:.2f} s; {self._capacity:.1f} requests a second")
        self._findings.add("full step", SECONDS, step_seconds)
        if self._options.limits:
            await self._show_unbounded()
            await self._start_best_vllm(stack)
        for run in range(self._options.num_runs):
            sides = [name for name in (OURS, THEIRS) if name in self._servers]
            for name in sides if run % 2 == 0 else reversed(sides):
                self._tell(f"  run {run + 1}, {name}")
                await self._measure(name)
        self._report(step_seconds)
        return self._findings

    def _folder(self, name: str) -> Path:
        folder = self._scratch / name
        folder.mkdir()
        return folder

    def _enter(self, stack: AsyncExitStack, name: str, server: Server) -> None:
        self._servers[name] = server
        self._turns.add(name, server.program.processes)
        stack.callback(self._leave, name)

    def _leave(self, name: str) -> None:
        """It is about to end."""
        del self._servers[name]
        self._turns.remove(name)

    async def _sent(self, name: str, load: Sequence[Due]) -> Sent:
        await self._turns.give(name)
        server = self._servers[name]
        sent = await server.program.while_alive(server.sender.open_loop(load))
        self._check(name, sent)
        return sent

    def _check(self, name: str, sent: Sent) -> None:
        self._num_late += sent.client_is_late
        failures = {answer.failure for answer in sent.answers if answer.failure}
        if failures:
            raise WrongResult(f"{name}: {sorted(failures)[0]}")

    async def _full_step_seconds(self) -> float:
        """Of an engine that does nothing else."""
        server = self._servers[OURS]
        num_tokens = step_tokens(self._line)
        ask = Ask(LIGHT, num_tokens, 1)
        sent = await server.program.while_alive(server.sender.closed_loop(ask, 1 + _NUM_FULL_STEPS, 1))
        self._check(OURS, sent)
        return median(sorted(answer.ttft_seconds for answer in sent.answers)[:_NUM_FULL_STEPS])

    async def _most_per_second(self) -> float:
        """Answers of Headrace where many clients ask again whenever they have one."""
        sent = await self._closed_loop(OURS, _NUM_STREAMED, _NUM_STREAMS)
        return len(sent.answers) / sent.seconds

    async def _peak(self, name: str) -> float:
        """Good answers a second where a few do."""
        sent = await self._closed_loop(name, _NUM_PEAK_STREAMED, _NUM_PEAK_STREAMS)
        return goodput(sent.answers, _SLO, begin=sent.began_at, end=sent.began_at + sent.seconds)

    async def _closed_loop(self, name: str, num_requests: int, num_streams: int) -> Sent:
        await self._turns.give(name)
        server = self._servers[name]
        sent = await server.program.while_alive(server.sender.closed_loop(_LIGHT_ASK, num_requests, num_streams))
        self._check(name, sent)
        if not any(answer.is_complete for answer in sent.answers):
            raise WrongResult(f"{name} refused everything")
        return sent

    async def _start_best_vllm(self, stack: AsyncExitStack) -> None:
        """vLLM's server with the limit that gives the most good answers at four times the load."""
        limit = await self._best_limit(stack)
        self._findings.remarks.append(f"vLLM has --max-num-queued-reqs {limit}")
        if THEIRS not in self._servers:
            await self._start_vllm(stack, limit)

    async def _best_limit(self, stack: AsyncExitStack) -> int:
        """The server with the last one goes on where that is the best one."""
        limits, found = self._options.limits, dict[int, float]()
        if len(limits) == 1:
            return limits[0]
        for limit in limits:
            async with AsyncExitStack() as trial:
                await self._start_vllm(trial, limit)
                found[limit] = self._good_per_second(await self._sent(THEIRS, self._overload("sweep")))
                self._tell(f"  vLLM with --max-num-queued-reqs {limit}: {found[limit]:.2f} good answers a second")
                if limit == limits[-1] and found[limit] >= max(found.values()):
                    stack.push_async_exit(trial.pop_all())
        text = ", ".join(f"{limit}: {rate:.2f}" for limit, rate in found.items())
        self._findings.remarks.append(f"good answers a second of vLLM by --max-num-queued-reqs: {text}")
        return max(reversed(found), key=lambda limit: found[limit])

    async def _start_vllm(self, stack: AsyncExitStack, limit: int | None) -> None:
        """It is warm when this returns."""
        await self._turns.give(THEIRS)
        folder = self._folder(f"vllm-{limit}-{len(list(self._scratch.iterdir()))}")
        self._enter(stack, THEIRS, await stack.enter_async_context(vllm(folder, self._line, limit)))
        server = self._servers[THEIRS]
        await server.program.while_alive(server.sender.closed_loop(_LIGHT_ASK, _NUM_WARM_UP, _NUM_WARM_UP_STREAMS))

    async def _show_unbounded(self) -> None:
        """vLLM's default, once."""
        async with AsyncExitStack() as stack:
            await self._start_vllm(stack, None)
            sent = await self._sent(THEIRS, self._flood(f"flood {self._options.num_runs - 1}"))
        light = self._in_the_flood(sent)
        self._keep_picture(UNBOUNDED, sent)
        p99 = ttft(light, most_seconds=self._times.flood_seconds)
        self._findings.remarks.append(
            f"vLLM without a bound, under the flood: p99 TTFT of the light tenant {p99:.2f} s, output "
            f"{sent.tokens_per_second:.0f} tokens/s"
        )

    async def _measure(self, name: str) -> None:
        """Everything once on one side."""
        figures = self._figures[name]
        figures.peak.append(await self._peak(name))
        alone = await self._sent(name, self._light(f"alone {len(figures.alone)}", self._times.alone_seconds))
        figures.alone.append(ttft(alone.answers, most_seconds=self._times.alone_seconds))
        flooded = await self._sent(name, self._flood(f"flood {len(figures.flooded)}"))
        light = self._in_the_flood(flooded)
        figures.flooded.append(ttft(light, most_seconds=self._times.flood_seconds))
        figures.refused.append(sum(answer.refused is not None for answer in light) / len(light))
        figures.throughput.append(flooded.tokens_per_second)
        self._keep_picture(name, flooded)
        over = await self._sent(name, self._overload(f"overload {len(figures.goodput)}"))
        figures.goodput.append(self._good_per_second(over))
        if costs := [answer.refused.cost_seconds for answer in over.answers if answer.refused is not None]:
            figures.refusal.append(percentile(costs, 99))
        counts = ", ".join(f"{number} × {status}" for status, number in refusals(over.answers).items())
        self._tell(
            f"    alone {figures.alone[-1]:.2f} s, flooded {figures.flooded[-1]:.2f} s, peak {figures.peak[-1]:.1f}, "
            f"at 4 × {figures.goodput[-1]:.1f} good a second; of {len(over.answers)} {counts or 'none'} refused"
        )

    # The loads.

    def _light(self, seed: str, seconds: float) -> tuple[Due, ...]:
        return poisson(_LIGHT_ASK, self._capacity * _LIGHT_SHARE, seconds, seed=f"light {seed}")

    def _flood(self, seed: str) -> tuple[Due, ...]:
        times, rate = self._times, self._capacity * _LIGHT_SHARE * _FOLD
        seconds = times.flood_end - times.flood_begin
        flood = poisson(_FLOOD_ASK, rate, seconds, seed=f"flood {seed}", begin_seconds=times.flood_begin)
        return together(self._light(seed, times.flood_seconds), flood)

    def _overload(self, seed: str) -> tuple[Due, ...]:
        return poisson(_CLIENT_ASK, self._capacity * _OVERLOAD, self._times.overload_seconds, seed=seed)

    # What came of them.

    def _in_the_flood(self, sent: Sent) -> list[Answer]:
        begin, end = sent.began_at + self._times.flood_begin, sent.began_at + self._times.flood_end
        return [answer for answer in of_tenant(sent.answers, LIGHT) if begin <= answer.due_at < end]

    def _good_per_second(self, sent: Sent) -> float:
        """Of requests that were due while the load came, without its beginning."""
        begin = sent.began_at + _WARM_UP_SHARE * self._times.overload_seconds
        return goodput(sent.answers, _SLO, begin=begin, end=sent.began_at + self._times.overload_seconds)

    def _keep_picture(self, name: str, sent: Sent) -> None:
        """The last flood of a side: when the light tenant's requests were due, and when their first text came."""
        light = sorted(of_tenant(sent.answers, LIGHT), key=lambda answer: answer.due_at)
        samples = self._findings.samples
        served = [answer for answer in light if answer.first_at is not None]
        samples[f"{name}: due_seconds"] = [answer.due_at - sent.began_at for answer in served]
        samples[f"{name}: ttft_seconds"] = [answer.ttft_seconds for answer in served]
        samples[f"{name}: refused_due_seconds"] = [a.due_at - sent.began_at for a in light if a.first_at is None]

    def _report(self, step_seconds: float) -> None:
        ours, theirs = self._figures[OURS], self._figures[THEIRS]

        def both(pick: Callable[[_Figures], list[float]]) -> tuple[list[float], list[float] | None]:
            return pick(ours), pick(theirs) or None

        def steps(figures: _Figures) -> list[float]:
            pairs = zip(figures.flooded, figures.alone, strict=True)
            return [(flooded - alone) / step_seconds for flooded, alone in pairs]

        def kept(figures: _Figures) -> list[float]:
            return [good / peak for good, peak in zip(figures.goodput, figures.peak, strict=True)]

        lines: Sequence[tuple[str, Measure, Callable[[_Figures], list[float]], Target | None]] = (
            ("p99 TTFT of the light tenant alone", MILLISECONDS, lambda f: f.alone, None),
            ("… under the flood", MILLISECONDS, lambda f: f.flooded, None),
            ("… over alone, in full steps", STEPS, steps, at_most(_MOST_STEPS)),
            ("its requests that were refused", SHARE, lambda f: f.refused, at_most(0)),
            ("output under the flood", TOKEN_RATE, lambda f: f.throughput, None),
            ("good answers at the peak", RATE, lambda f: f.peak, None),
            ("… at 4 × / at the peak", RATIO, kept, at_least(_LEAST_GOODPUT)),
            ("time until a refusal, p99", MILLISECONDS, lambda f: f.refusal, at_most(_MOST_REFUSAL_SECONDS)),
        )
        for title, measure, pick, target in lines:
            values, others = both(pick)
            if values:
                self._findings.add(title, measure, values, theirs=others, target=target)
        if theirs.throughput:
            ratios = paired_ratios(ours.throughput, theirs.throughput)
            self._findings.add("output under the flood / vLLM", RATIO, ratios, target=at_least(_LEAST_THROUGHPUT))
        if self._num_late:
            self._findings.remarks.append(f"in {self._num_late} loads this client was late or busy")


def step_tokens(line: Sequence[str]) -> int:
    """`max_num_batched_tokens` of the engine arguments, or vLLM's default on CPUs."""
    parts = [part for argument in line for part in argument.split("=", 1)]
    for name, value in pairwise(parts):
        if name == "--max-num-batched-tokens":
            return int(value)
    return _DEFAULT_STEP_TOKENS
