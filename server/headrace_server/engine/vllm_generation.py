"""Chat and text completions on vLLM, past its serving objects' streams: request in, `Generation` out.

vLLM renders the template and tokenises (in threads of its own), checks and converts the sampling fields, and parses
reasoning and tool calls. Frames, documents and usage are `serving`'s. A stream asks vLLM for deltas; vLLM merges those
that nobody has fetched yet.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from starlette.datastructures import State
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.outputs import RequestOutput
from vllm.utils.async_utils import merge_async_iterators

from headrace_server.domain import EngineRequest, Operation, Seat
from headrace_server.engine.vllm_chat import VllmChat
from headrace_server.engine.vllm_choices import Choice, check_finish
from headrace_server.engine.vllm_completion import VllmCompletion
from headrace_server.engine.vllm_errors import Explain
from headrace_server.engine.vllm_prompts import Opened
from headrace_server.engine.vllm_seat import SeatInUse, using_seat
from headrace_server.engine.vllm_wire import wire_request
from headrace_server.generation import Delta, Generation


class VllmGeneration:
    """Opens generations on one engine; `explain` makes our error of whatever vLLM raises."""

    def __init__(self, client: EngineClient, state: State, explain: Explain) -> None:
        self._client = client
        self._generates = getattr(state, "openai_serving_chat", None) is not None
        self._chat = VllmChat(getattr(state, "openai_serving_chat", None))
        self._completion = VllmCompletion(getattr(state, "openai_serving_completion", None))
        self._explain = explain

    def operations(self) -> frozenset[Operation]:
        """What this model does."""
        return frozenset({Operation.CHAT, Operation.COMPLETION} if self._generates else ())

    async def open(self, request: EngineRequest, seat: Seat) -> Generation:
        """Render, tokenise, take the seat. Nothing is generated before the first delta is asked for.

        Raises:
            RequestError: see `Engine.submit`.
        """
        try:
            opened = await self._opened(request)
        except Exception as error:
            raise self._explain(error) from error
        await seat.take(opened.demand())
        return Generation(
            self._deltas(opened, request, seat),
            prompt_lengths=tuple(prompt.num_tokens for prompt in opened.prompts),
            num_choices=len(opened.choices),
            role=opened.role,
            fingerprint=opened.fingerprint,
        )

    async def _opened(self, request: EngineRequest) -> Opened:
        wire = wire_request(request)
        opener = self._chat if isinstance(wire, ChatCompletionRequest) else self._completion
        return await opener.opened(wire)

    async def _deltas(
        self, opened: Opened, request: EngineRequest, seat: Seat
    ) -> AsyncGenerator[Sequence[Delta], None]:
        place = using_seat(seat, request)  # by whoever reads, which is where the engine is asked
        parts, results = opened.choices_by_prompt(), self._results(opened, request.request_id, place)
        echo = [Delta(index, opened.echo, 0) for index in range(len(opened.choices))] if opened.echo else []
        try:
            async with aclosing(results):
                async for number, result in results:
                    step = _step(result, parts[number])
                    yield [*echo, *step] if echo else step
                    echo = []
        except Exception as error:
            raise self._explain(error) from error

    def _results(
        self, opened: Opened, request_id: str, place: SeatInUse
    ) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """What comes for each prompt, with the prompt's number."""
        merged: AsyncGenerator[tuple[int, RequestOutput], None] = merge_async_iterators(
            *(
                self._client.generate(
                    place.salted(prompt.engine_input),
                    prompt.parameters,
                    f"{request_id}-{n}",
                    priority=place.priority,
                    **prompt.options,
                )
                for n, prompt in enumerate(opened.prompts)
            )
        )
        return merged


def _step(result: RequestOutput, choices: Sequence[Choice]) -> list[Delta]:
    for output in result.outputs:
        if output.finish_reason is not None:
            check_finish(output)
    return [choices[output.index].delta(output, result) for output in result.outputs]
