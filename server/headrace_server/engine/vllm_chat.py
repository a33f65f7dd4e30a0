"""Chat completions: vLLM's renderer, its sampling parameters, and its parsers where there is something to parse.

The settings (parsers, template options, defaults) are read off the serving object that vLLM has built from the engine's
arguments.
"""

from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser.abstract_parser import DelegatingParser
from vllm.renderers.inputs.preprocess import extract_prompt_components

from headrace_server.engine.vllm_choices import (
    Choice,
    LogprobOptions,
    ParsedChoice,
    ParsingRules,
    PlainChoice,
    ScoredChoice,
    WholeChoice,
)
from headrace_server.engine.vllm_prompts import Opened, make_prompt, unless_refused


class VllmChat:
    """Opens chat completions. `serving` is vLLM's `OpenAIServingChat`."""

    def __init__(self, serving: Any) -> None:
        self._serving = serving

    async def opened(self, wire: ChatCompletionRequest) -> Opened:
        """Render, tokenise, and settle how the answer is sampled and parsed."""
        serving = self._serving
        conversation, (engine_input,) = unless_refused(await serving.online_renderer.render_chat(wire))
        bound = wire.max_tokens if wire.max_completion_tokens is None else wire.max_completion_tokens
        rules = self._parsing_rules(wire)
        options = {} if rules is None else self._reasoning_options(wire, rules, engine_input)
        role = serving.get_chat_request_role(wire)
        return Opened(
            prompts=(make_prompt(serving, wire, engine_input, bound=bound, options=options),),
            choices=tuple(self._choice(wire, rules, index) for index in range(wire.n or 1)),
            fingerprint=serving.system_fingerprint,
            role=role,
            echo=_last_words(conversation, role) if wire.echo else "",
        )

    def _choice(self, wire: ChatCompletionRequest, rules: ParsingRules | None, index: int) -> Choice:
        if rules is not None:
            return ParsedChoice(index, rules) if wire.stream else WholeChoice(index, rules)
        if wire.logprobs:
            return ScoredChoice(index, logprobs=self._logprobs(wire))
        return PlainChoice(index)

    def _logprobs(self, wire: ChatCompletionRequest) -> LogprobOptions:
        return LogprobOptions(wire.top_logprobs or 0, self._serving.renderer.tokenizer)

    def _parsing_rules(self, wire: ChatCompletionRequest) -> ParsingRules | None:
        """None where there is nothing to parse: the model does not reason and the request has no tools.

        Parsers other than vLLM's pair of a reasoning and a tool parser know formats in which plain text is wrapped too.
        """
        kind = self._serving.parser_cls
        if kind is None:
            return None
        reasons = kind.reasoning_parser_cls is not None
        if issubclass(kind, DelegatingParser) and not reasons and not wire.tools:
            return None
        template_options = self._serving._effective_chat_template_kwargs(wire)
        return ParsingRules(
            request=wire,
            make_parser=lambda: self._serving._make_parser(wire, self._serving.renderer.tokenizer, template_options),
            auto_tools=self._serving.enable_auto_tools,
            counts_reasoning=reasons,
            always_count=bool(wire.stream_options and wire.stream_options.continuous_usage_stats),
            logprobs=self._logprobs(wire) if wire.logprobs else None,
        )

    def _reasoning_options(
        self, wire: ChatCompletionRequest, rules: ParsingRules, engine_input: Any
    ) -> dict[str, object]:
        """Tells the engine whether the answer begins with reasoning, which no grammar binds."""
        token_ids = extract_prompt_components(self._serving.model_config, engine_input).token_ids
        template_options = self._serving._effective_chat_template_kwargs(wire)
        options: dict[str, object] = self._serving._engine_reasoning_kwargs(
            wire, rules.make_parser(), template_options, token_ids
        )
        return options


def _last_words(conversation: Sequence[Any], role: str) -> str:
    """The text of the conversation's last turn, where `role` spoke it."""
    last = conversation[-1] if conversation else {}
    content = last.get("content") if last.get("role") == role else None
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""
