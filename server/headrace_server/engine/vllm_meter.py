"""What vLLM's engine does for each request, counted and told on the request's seat as it happens.

Every output of every step passes through vLLM's output processor: of chats and of embeddings, of streams and of
answers that are sent in one piece. It is counted there and nowhere else, so what seats hear is what the engine did.
Runs on the event loop, inside vLLM's own task. Costs 0.8 µs a token.
"""

from collections.abc import Sequence
from typing import Any

from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput, RequestState
from vllm.v1.metrics.stats import PrefillStats

from headrace_server.engine.vllm_seat import SeatInUse, seat_in_use
from headrace_server.engine.vllm_stats import StepCounters


class Meter:
    """Stands between an engine's outputs and `processor`, from when it is made."""

    def __init__(self, processor: OutputProcessor, counters: StepCounters) -> None:
        self._counters = counters
        self._states = processor.request_states
        self._add = processor.add_request
        self._process = processor.process_outputs
        processor.add_request = self._add_request
        processor.process_outputs = self._process_outputs

    def _add_request(self, request: EngineCoreRequest, *args: Any, **kwargs: Any) -> None:
        """A sequence is about to be handed to the engine, in a task that uses the request's seat."""
        self._add(request, *args, **kwargs)
        self._states[request.request_id].seat = seat_in_use()

    def _process_outputs(self, outputs: Sequence[EngineCoreOutput], *args: Any, **kwargs: Any) -> OutputProcessorOutput:
        """Counted after the processor, which drops tokens behind a stop string, and forgets who has finished."""
        states = [self._states.get(output.request_id) for output in outputs]
        processed = self._process(outputs, *args, **kwargs)
        for state, output in zip(states, outputs, strict=True):
            if state is not None:
                self._count(state, output)
        return processed

    def _count(self, state: RequestState, output: EngineCoreOutput) -> None:
        seat: SeatInUse | None = state.seat
        if output.prefill_stats is not None:
            self._began(seat, output.prefill_stats, is_first=state.request_index == 0)
        num_tokens = len(output.new_token_ids)
        if num_tokens:
            self._counters.generated(num_tokens)
            if seat is not None:
                seat.generated(num_tokens)
        if output.events:
            self._counters.preempted(sum(event.type is EngineCoreEventType.PREEMPTED for event in output.events))

    def _began(self, seat: SeatInUse | None, prefill: PrefillStats, *, is_first: bool) -> None:
        """Of a prompt with several choices, the further ones count with what they had to compute themselves."""
        computed, cached = prefill.num_computed_tokens, prefill.num_cached_tokens if is_first else 0
        self._counters.began(computed + cached)
        if seat is not None:
            seat.began(computed, cached)
