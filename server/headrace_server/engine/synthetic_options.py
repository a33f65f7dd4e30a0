"""The synthetic engine's arguments: `EngineSpec.arguments` converted once to a frozen value.

The configuration layer states the defaults too; both sides agree, so that a spec made by hand (tests, benches)
behaves like a configured one. Times are in milliseconds in the arguments and in seconds everywhere else.
"""

import math
from dataclasses import dataclass

import msgspec

from headrace_server.engine.base import EngineSpec
from headrace_server.engine.synthetic_steps import StepModel
from headrace_server.errors import UsageError


@dataclass(frozen=True, slots=True)
class SyntheticOptions:
    """How the engine behaves. `fail_after_tokens` fails each request once it has made so many tokens. With `step_ms` it
    works in steps (`synthetic_steps`), which the arguments after it describe; otherwise they mean nothing."""

    ttft_ms: float = 0.0
    itl_ms: float = 0.0
    seed: int = 0
    max_model_len: int = 8192
    max_num_seqs: int = 256
    load_seconds: float = 0.0
    memory_bytes: int = 0
    fail_after_tokens: int | None = None
    step_ms: float = 0.0
    decode_us_per_sequence: float = 0.0
    prefill_us_per_token: float = 0.0
    max_num_batched_tokens: int = 2048
    kv_cache_tokens: int | None = None
    prefix_caching: bool = False

    @property
    def ttft_seconds(self) -> float:
        return self.ttft_ms / 1000

    @property
    def itl_seconds(self) -> float:
        return self.itl_ms / 1000

    @property
    def step_model(self) -> StepModel | None:
        """None where it does not work in steps."""
        if self.step_ms == 0:
            return None
        return StepModel(
            base_seconds=self.step_ms / 1000,
            seconds_per_sequence=self.decode_us_per_sequence / 1e6,
            seconds_per_token=self.prefill_us_per_token / 1e6,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_cache_tokens=math.inf if self.kv_cache_tokens is None else self.kv_cache_tokens,
        )


def options_of(spec: EngineSpec) -> SyntheticOptions:
    """Read a spec's arguments; unknown ones are ignored, those that are None take the default.

    Raises:
        UsageError: an argument has the wrong type or is out of range.
    """
    given = {name: value for name, value in spec.arguments.items() if value is not None}
    try:
        options = msgspec.convert(given, SyntheticOptions)
    except msgspec.ValidationError as error:
        raise UsageError(f"model {spec.model!r}: synthetic engine arguments: {error}") from error
    problem = _problem(options)
    if problem:
        raise UsageError(f"model {spec.model!r}: {problem}")
    return options


def _problem(options: SyntheticOptions) -> str:
    step_costs = (options.step_ms, options.decode_us_per_sequence, options.prefill_us_per_token)
    sizes = (options.max_model_len, options.max_num_seqs, options.max_num_batched_tokens)
    if min(sizes) < 1 or options.kv_cache_tokens == 0:
        return "max_model_len, max_num_seqs, max_num_batched_tokens and kv_cache_tokens must be positive"
    if min(options.ttft_ms, options.itl_ms, options.load_seconds, *step_costs) < 0:
        return "times must not be negative"
    if options.step_ms and (options.ttft_ms or options.itl_ms):
        return "with step_ms the time of tokens follows from the steps: leave ttft_ms and itl_ms out"
    if not options.step_ms and any(step_costs):
        return "decode_us_per_sequence and prefill_us_per_token say what is added to step_ms: set it too"
    return ""
