"""`headrace bench`: its options. What they mean is in `headrace_server.bench`, imported when the command runs."""

import os
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from headrace_server.errors import UsageError

if TYPE_CHECKING:
    from headrace_server.bench.arrivals import Arrivals

_DEFAULT_STREAMS = 16
_OPEN_LOOP_SECONDS = 20
_REPLAYED_REQUESTS = 100
_SEED_BYTES = 4

Url = Annotated[str, typer.Argument(metavar="[NAME=]URL", help="The server, for example http://127.0.0.1:8000.")]
BaselineUrl = Annotated[
    str | None, typer.Argument(metavar="[[NAME=]BASELINE_URL]", help="A second one to compare it with, in turns.")
]
Streams = Annotated[int | None, typer.Option(min=1, help="Closed loop: requests at a time.  [default: 16]")]
Rate = Annotated[float | None, typer.Option(min=1e-3, help="Open loop: Poisson arrivals per second.")]
Trace = Annotated[Path | None, typer.Option(help="Open loop: a CSV file with TIMESTAMP,ContextTokens,GeneratedTokens.")]
TraceSpeed = Annotated[float, typer.Option(min=1e-3, help="Replay the trace this many times as fast.")]
Tokens = Annotated[int, typer.Option(min=1, help="Output tokens of a request.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Tokens of a prompt, about.")]
Requests = Annotated[
    int | None, typer.Option(min=1, help="Requests in a block.  [default: 2 per stream; 20 s of arrivals; 100]")
]
Blocks = Annotated[int, typer.Option(min=1, help="Blocks for each server.")]
WarmUp = Annotated[
    int | None, typer.Option(min=0, help="Uncounted requests before a block.  [default: 1 per stream; 8]")
]
Seed = Annotated[int | None, typer.Option(help="Of prompts and arrivals.  [default: a new one each time]")]
Unary = Annotated[bool, typer.Option("--unary", help="Ask for answers in one piece; measures latency only.")]
EndpointName = Annotated[Literal["chat", "completions"], typer.Option(help="Which endpoint to ask.")]
Model = Annotated[str, typer.Option(help="Model to ask for.  [default: the first that the server lists]")]
ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="Key for both servers.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.")]
SloTtft = Annotated[float, typer.Option(min=0, help="Goodput: time to first token, at most.")]
SloTpot = Annotated[float, typer.Option(min=0, help="Goodput: mean time per further token, at most.")]
NoPause = Annotated[bool, typer.Option("--no-pause", help="Let the server that has no turn run on.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything measured.")]
PictureFile = Annotated[
    Path | None, typer.Option("--picture", metavar="FILE", help="Draw it, as .png or .svg (needs matplotlib).")
]


def bench(  # noqa: PLR0913 - a command's options are its parameters
    url: Url,
    baseline_url: BaselineUrl = None,
    streams: Streams = None,
    rate: Rate = None,
    trace: Trace = None,
    trace_speed: TraceSpeed = 1.0,
    tokens: Tokens = 128,
    prompt_tokens: PromptTokens = 32,
    requests: Requests = None,
    blocks: Blocks = 6,
    warm_up: WarmUp = None,
    seed: Seed = None,
    unary: Unary = False,
    endpoint: EndpointName = "chat",
    model: Model = "",
    api_key: ApiKey = None,
    timeout: Timeout = 120.0,
    slo_ttft_ms: SloTtft = 1500.0,
    slo_tpot_ms: SloTpot = 200.0,
    no_pause: NoPause = False,
    json: JsonFile = None,
    picture: PictureFile = None,
) -> None:
    """Measure one OpenAI-compatible server, or compare two.

    Two servers take turns, block by block; on this machine the one without a turn is stopped (SIGSTOP) with all of its
    processes, and continued at the end, however this command ends. A server in the foreground of a terminal is better
    left alone: --no-pause.
    """
    from headrace_server.bench.arrivals import Load
    from headrace_server.bench.command import BenchOptions, run_bench
    from headrace_server.bench.endpoint import Api
    from headrace_server.bench.side import Asking
    from headrace_server.bench.summary import Slo

    arrivals, num_requests = arrivals_of(streams, rate, trace, trace_speed)
    load = Load(
        arrivals=arrivals,
        num_requests=requests or num_requests,
        num_tokens=tokens,
        num_prompt_tokens=prompt_tokens,
        num_warm_up=warm_up_of(arrivals) if warm_up is None else warm_up,
        stream=not unary,
        seed=int.from_bytes(os.urandom(_SEED_BYTES), "big") if seed is None else seed,
    )
    options = BenchOptions(
        targets=(url, baseline_url) if baseline_url is not None else (url,),
        asking=Asking(Api(endpoint), model, api_key, timeout),
        load=load,
        num_blocks=blocks,
        slo=Slo(slo_ttft_ms / 1e3, slo_tpot_ms / 1e3),
        pause=not no_pause,
        json_path=json,
        picture_path=picture,
    )
    raise typer.Exit(run_bench(options))


def arrivals_of(
    streams: int | None, rate: float | None, trace: Path | None, trace_speed: float
) -> tuple["Arrivals", int]:
    """How requests arrive, and how many make a block unless the command line says.

    Raises:
        UsageError: more than one of the three is given, or the trace is bad.
    """
    from headrace_server.bench.arrivals import ClosedLoop, Poisson, Replay
    from headrace_server.bench.trace import read_trace

    if sum(option is not None for option in (streams, rate, trace)) > 1:
        raise UsageError("--streams, --rate and --trace exclude each other")
    if rate is not None:
        return Poisson(rate), ceil(rate * _OPEN_LOOP_SECONDS)
    if trace is not None:
        return Replay(read_trace(trace), trace_speed), _REPLAYED_REQUESTS
    num_streams = streams or _DEFAULT_STREAMS
    return ClosedLoop(num_streams), 2 * num_streams


def warm_up_of(arrivals: "Arrivals") -> int:
    """How many requests warm up: one for each stream of a closed loop, else eight."""
    from headrace_server.bench.arrivals import WARM_UP_STREAMS, ClosedLoop

    return arrivals.num_streams if isinstance(arrivals, ClosedLoop) else WARM_UP_STREAMS
