"""The synthetic engine's arguments: `EngineSpec.arguments` converted once to a frozen value.

The configuration layer states the defaults too; both sides agree, so that a spec made by hand (tests, benches)
behaves like a configured one. Times are in milliseconds in the arguments and in seconds everywhere else.
"""

from dataclasses import dataclass

import msgspec

from headrace_server.engine.base import EngineSpec
from headrace_server.errors import UsageError


@dataclass(frozen=True, slots=True)
class SyntheticOptions:
    """How the engine behaves. `fail_after_tokens` fails each request once it has made so many tokens."""

    ttft_ms: float = 0.0
    itl_ms: float = 0.0
    seed: int = 0
    max_model_len: int = 8192
    max_num_seqs: int = 256
    load_seconds: float = 0.0
    memory_bytes: int = 0
    fail_after_tokens: int | None = None

    @property
    def ttft_seconds(self) -> float:
        return self.ttft_ms / 1000

    @property
    def itl_seconds(self) -> float:
        return self.itl_ms / 1000


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
    if options.max_model_len < 1 or options.max_num_seqs < 1:
        raise UsageError(f"model {spec.model!r}: max_model_len and max_num_seqs must be positive")
    if min(options.ttft_ms, options.itl_ms, options.load_seconds) < 0:
        raise UsageError(f"model {spec.model!r}: ttft_ms, itl_ms and load_seconds must not be negative")
    return options
