"""What a chat or text completion comes to before it runs: tokenised prompts, sampling parameters, choices."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.renderers.inputs.preprocess import extract_prompt_len
from vllm.sampling_params import SamplingParams

from headrace_server.domain import Demand
from headrace_server.engine.vllm_choices import Choice
from headrace_server.engine.vllm_errors import from_document

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One tokenised prompt and how its answer is sampled; `options` are further arguments of `AsyncLLM.generate`."""

    engine_input: Any = field(repr=False)
    parameters: SamplingParams
    num_tokens: int
    options: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opened:
    """A request that is ready to run.

    Attributes:
        prompts: each has the same number of choices.
        choices: in the prompts' order.
        role: who speaks.
        echo: text that goes before every choice.
        fingerprint: vLLM's name for its configuration.
    """

    prompts: Sequence[Prompt]
    choices: Sequence[Choice]
    fingerprint: str | None
    role: str = "assistant"
    echo: str = ""

    def choices_by_prompt(self) -> list[Sequence[Choice]]:
        """The choices of each prompt."""
        size = len(self.choices) // len(self.prompts)
        return [self.choices[start : start + size] for start in range(0, len(self.choices), size)]

    def demand(self) -> Demand:
        """What it asks of the engine."""
        return Demand(
            num_prompt_tokens=sum(prompt.num_tokens for prompt in self.prompts),
            max_output_tokens=sum((prompt.parameters.max_tokens or 0) * prompt.parameters.n for prompt in self.prompts),
            num_sequences=len(self.choices),
        )


def make_prompt(
    serving: Any,
    wire: ChatCompletionRequest | CompletionRequest,
    engine_input: Any,
    *,
    bound: int | None,
    options: dict[str, object] | None = None,
) -> Prompt:
    """A prompt with vLLM's sampling parameters for it: the request's, then those of the model's generation config.

    `serving` is the vLLM serving object whose defaults count; `bound` the request's own limit on output tokens.

    Raises:
        ValueError: the prompt is longer than the context.
        VLLMValidationError: vLLM refuses a sampling field.
    """
    num_tokens = extract_prompt_len(serving.model_config, engine_input)
    defaults = serving.default_sampling_params
    max_tokens = get_max_tokens(
        serving.model_config.max_model_len, bound, num_tokens, defaults, serving.override_max_tokens
    )
    return Prompt(engine_input, wire.to_sampling_params(max_tokens, defaults), num_tokens, options or {})


def unless_refused(rendered: T | ErrorResponse) -> T:
    """What vLLM has rendered.

    Raises:
        RequestError: it answered with an error document.
    """
    if isinstance(rendered, ErrorResponse):
        raise from_document(rendered)
    return rendered
