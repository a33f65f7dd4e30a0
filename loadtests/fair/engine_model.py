"""The engine that the virtual half of `bench_fair` measures with: how long its steps take, and what it can do at most.

A step takes a + b·(sequences that decode) + c·(prompt tokens). The figures are those of SmolLM2-135M on two cores, with
the prefill budget that Headrace gives an engine on CPUs.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineModel:
    """See the module. `kv_cache_tokens` bounds the tokens of all sequences in the engine."""

    step_ms: float = 26.0
    decode_us_per_sequence: float = 1500.0
    prefill_us_per_token: float = 1500.0
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 256
    kv_cache_tokens: int = 46_592
    max_model_len: int = 8192

    def arguments(self) -> dict[str, object]:
        """For the synthetic engine."""
        return {
            "step_ms": self.step_ms,
            "decode_us_per_sequence": self.decode_us_per_sequence,
            "prefill_us_per_token": self.prefill_us_per_token,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "kv_cache_tokens": self.kv_cache_tokens,
            "max_model_len": self.max_model_len,
        }

    def step_seconds(self, *, num_decoding: int, num_prompt_tokens: int) -> float:
        """How long one step takes."""
        micros = num_decoding * self.decode_us_per_sequence + num_prompt_tokens * self.prefill_us_per_token
        return self.step_ms / 1e3 + micros / 1e6

    @property
    def full_step_seconds(self) -> float:
        """A step that does nothing but prefill, as much as it may."""
        return self.step_seconds(num_decoding=0, num_prompt_tokens=self.max_num_batched_tokens)

    def request_seconds(self, num_prompt_tokens: int, num_output_tokens: int) -> float:
        """What a request takes of the engine's time while as many run beside it as fit, all of them alike."""
        fitting = self.kv_cache_tokens // (num_prompt_tokens + num_output_tokens)
        width = max(1, min(self.max_num_seqs, fitting))
        per_token = self.step_seconds(num_decoding=width, num_prompt_tokens=0) / width
        return num_prompt_tokens * self.prefill_us_per_token / 1e6 + num_output_tokens * per_token

    def requests_per_second(self, num_prompt_tokens: int, num_output_tokens: int) -> float:
        """The most that it can serve of such requests."""
        return 1 / self.request_seconds(num_prompt_tokens, num_output_tokens)
