"""vLLM's `AsyncLLM` without any server, as a process that is measured beside servers: what is left of their processor
time and latency after this is their API layer's.

    python loadtests/engine_alone.py ENGINE_ARGUMENT...

takes the engine arguments of vLLM's server. It prints `{"ready": true}`, and then answers each line on its standard
input with one on its standard output, until the input ends:

    {"prompts": ["..."], "num_tokens": 128, "num_streams": 16, "stream": true}
    {"num_tokens": 2048, "seconds": 0.21, "latencies": [0.2, ...]}

`num_streams` generations run at a time, until every prompt had its turn. `stream` asks for deltas, otherwise for the
final output alone, as a server does for an answer in one piece. Prompts are rendered with the model's chat template
before the clock starts. Sampling is greedy and stops at `num_tokens`. `latencies` are in seconds, one for each prompt.
"""

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_TOKENIZER_THREADS = {"TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Work:
    """One line of input."""

    prompts: tuple[str, ...]
    num_tokens: int
    num_streams: int
    stream: bool


@dataclass(frozen=True, slots=True)
class Done:
    """One line of output."""

    num_tokens: int
    seconds: float
    latencies: tuple[float, ...]


class EngineAlone:
    """An `AsyncLLM` and what it is asked."""

    def __init__(self, arguments: Sequence[str]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.usage.usage_lib import UsageContext
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.async_llm import AsyncLLM

        line = make_arg_parser(FlexibleArgumentParser()).parse_args(list(arguments))
        engine_args = AsyncEngineArgs.from_cli_args(line)
        engine_args.disable_log_stats = True
        self._llm = AsyncLLM.from_engine_args(engine_args, usage_context=UsageContext.OPENAI_API_SERVER)
        self._num_requests = 0

    def close(self) -> None:
        """Stop the engine's processes. vLLM does it again when it is collected: now, not at the interpreter's end."""
        self._llm.shutdown()
        del self._llm
        gc.collect()

    async def run(self, work: Work) -> Done:
        """Generate for every prompt."""
        prompts = iter([self._render(prompt) for prompt in work.prompts])
        began = time.perf_counter()
        workers = [self._generate_all(prompts, work) for _ in range(work.num_streams)]
        latencies = [seconds for part in await asyncio.gather(*workers) for seconds in part]
        seconds = time.perf_counter() - began
        return Done(len(work.prompts) * work.num_tokens, seconds, tuple(latencies))

    def _render(self, prompt: str) -> Any:
        from vllm.inputs import tokens_input

        messages = [{"role": "user", "content": prompt}]
        tokenizer = self._llm.renderer.get_tokenizer()
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return tokens_input(tokenizer.encode(text, add_special_tokens=False))

    async def _generate_all(self, prompts: Iterator[Any], work: Work) -> list[float]:
        latencies = []
        for prompt in prompts:
            began = time.perf_counter()
            await self._generate(prompt, work)
            latencies.append(time.perf_counter() - began)
        return latencies

    async def _generate(self, prompt: Any, work: Work) -> None:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        kind = RequestOutputKind.DELTA if work.stream else RequestOutputKind.FINAL_ONLY
        parameters = SamplingParams(
            temperature=0, max_tokens=work.num_tokens, ignore_eos=True, output_kind=kind, skip_clone=True
        )
        self._num_requests += 1
        num_tokens = 0
        async for output in self._llm.generate(prompt, parameters, f"alone-{self._num_requests}"):
            num_tokens += len(output.outputs[0].token_ids)
        if num_tokens != work.num_tokens:
            raise RuntimeError(f"a generation had {num_tokens} tokens in place of {work.num_tokens}")


async def _serve(arguments: Sequence[str]) -> None:
    engine = EngineAlone(arguments)
    try:
        _say({"ready": True})
        while line := await asyncio.to_thread(sys.stdin.readline):
            document = json.loads(line)
            work = Work(tuple(document["prompts"]), document["num_tokens"], document["num_streams"], document["stream"])
            _say(asdict(await engine.run(work)))
    finally:
        engine.close()


def _say(document: object) -> None:
    print(json.dumps(document), flush=True)


def main() -> None:
    import uvloop

    os.environ.update(_TOKENIZER_THREADS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sys.argv[1:]))


if __name__ == "__main__":
    main()
