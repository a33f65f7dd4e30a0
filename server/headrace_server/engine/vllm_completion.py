"""Text completions: one or several prompts, as text or token ids, each answered in `n` choices."""

from typing import Any

from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.renderers.inputs.preprocess import extract_prompt_components

from headrace_server.engine.vllm_choices import Choice, LogprobOptions, PlainChoice, ScoredChoice
from headrace_server.engine.vllm_prompts import Opened, Prompt, make_prompt, unless_refused


class VllmCompletion:
    """Opens text completions. `serving` is vLLM's `OpenAIServingCompletion`."""

    def __init__(self, serving: Any) -> None:
        self._serving = serving

    async def opened(self, wire: CompletionRequest) -> Opened:
        """Tokenise, and settle how the answers are sampled."""
        serving = self._serving
        engine_inputs = unless_refused(await serving.online_renderer.render_completion(wire))
        prompts = tuple(make_prompt(serving, wire, item, bound=wire.max_tokens) for item in engine_inputs)
        size = wire.n or 1
        choices = tuple(self._choice(wire, n, prompts[n // size]) for n in range(len(prompts) * size))
        return Opened(prompts, choices, serving.system_fingerprint)

    def _choice(self, wire: CompletionRequest, index: int, prompt: Prompt) -> Choice:
        if wire.logprobs is None and not wire.echo:
            return PlainChoice(index)
        # The sampled token, and as many as were asked for beside it.
        logprobs = None if wire.logprobs is None else LogprobOptions(wire.logprobs + 1, self._tokenizer)
        return ScoredChoice(index, logprobs=logprobs, echo=self._text_of(prompt) if wire.echo else "")

    @property
    def _tokenizer(self) -> Any:
        return self._serving.renderer.tokenizer

    def _text_of(self, prompt: Prompt) -> str:
        parts = extract_prompt_components(self._serving.model_config, prompt.engine_input)
        return str(self._tokenizer.decode(parts.token_ids)) if parts.text is None else str(parts.text)
