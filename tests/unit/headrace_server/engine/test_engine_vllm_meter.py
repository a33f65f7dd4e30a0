"""What seats and counters hear of an engine's outputs. Importing vLLM takes 10 s; no engine starts."""

import importlib
import importlib.util
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import pytest

from headrace_server.domain import EngineStats, Operation
from tests.fakes.engine_requests import OpenSeat, engine_request

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),  # importing vLLM warns about itself
    pytest.mark.timeout(120),
]

REQUEST = engine_request(Operation.CHAT, {})


class Processor:
    """vLLM's output processor, less what it does: a sequence is forgotten with its last output."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}

    def add_request(
        self, request: Any, prompt: str | None = None, parent: Any = None, index: int = 0, queue: Any = None
    ) -> None:
        self.request_states[request.request_id] = SimpleNamespace(request_index=index)

    def process_outputs(self, outputs: list[Any], *args: Any) -> list[Any]:
        for output in outputs:
            if output.finished:
                self.request_states.pop(output.request_id, None)
            del output.new_token_ids[output.num_kept :]
        return outputs


class Scene:
    """A meter on a stand-in for vLLM's output processor."""

    def __init__(self) -> None:
        self._seats = importlib.import_module("headrace_server.engine.vllm_seat")
        self.processor = Processor()
        self.counters = importlib.import_module("headrace_server.engine.vllm_stats").StepCounters()
        importlib.import_module("headrace_server.engine.vllm_meter").Meter(self.processor, self.counters)

    def sequence(self, name: str, seat: OpenSeat, index: int = 0) -> None:
        def add() -> None:
            self._seats.using_seat(seat, REQUEST)
            self.processor.add_request(SimpleNamespace(request_id=name), None, None, index)

        copy_context().run(add)

    def step(self, *outputs: Any) -> None:
        assert self.processor.process_outputs(list(outputs), 1.0, None) == list(outputs)

    @property
    def stats(self) -> EngineStats:
        stats: EngineStats = self.counters.snapshot()
        return stats


def output(name: str, num_tokens: int = 1, *, prefill: tuple[int, int] | None = None, **more: Any) -> Any:
    """An output of a step: new tokens, and what the prompt took, computed and cached, if they are the first ones."""
    stats = prefill and SimpleNamespace(num_computed_tokens=prefill[0], num_cached_tokens=prefill[1])
    defaults = {"finished": False, "events": None, "num_kept": num_tokens}
    return SimpleNamespace(request_id=name, new_token_ids=[7] * num_tokens, prefill_stats=stats, **{**defaults, **more})


def preempted() -> list[Any]:
    kind = importlib.import_module("vllm.v1.engine").EngineCoreEventType
    return [SimpleNamespace(type=kind.PREEMPTED), SimpleNamespace(type=kind.SCHEDULED)]


@pytest.fixture(scope="module", autouse=True)
def _vllm() -> None:
    """vLLM is imported before the first test's clock runs."""
    Scene()


def test_each_request_hears_what_is_done_for_it_when_it_is_done() -> None:
    scene, one, other = Scene(), OpenSeat(), OpenSeat()
    scene.sequence("one", one)
    scene.sequence("other", other)
    scene.step(output("one", prefill=(30, 12)))
    assert (one.prompts, one.num_generated) == ([(30, 12)], 1)
    scene.step(output("one", 3, finished=True), output("other", prefill=(5, 0)))
    assert (one.prompts, one.num_generated) == ([(30, 12)], 4)
    assert (other.prompts, other.num_generated) == ([(5, 0)], 1)
    assert (scene.stats.prompt_tokens_total, scene.stats.generation_tokens_total) == (47, 5)


def test_a_vectors_prompt_is_told_without_a_token() -> None:
    scene, seat = Scene(), OpenSeat()
    scene.sequence("text", seat)
    scene.step(output("text", 0, prefill=(9, 0), finished=True))
    assert (seat.prompts, seat.num_generated) == ([(9, 0)], 0)


def test_further_choices_of_a_prompt_count_with_what_they_compute_themselves() -> None:
    scene, seat = Scene(), OpenSeat()
    for index in (0, 1):
        scene.sequence(f"{index}_r", seat, index)
    scene.step(output("0_r", prefill=(100, 0)), output("1_r", prefill=(4, 96)))
    assert seat.prompts == [(100, 0), (4, 0)]
    assert scene.stats.prompt_tokens_total == 104


def test_tokens_behind_a_stop_string_and_of_sequences_that_were_aborted_do_not_count() -> None:
    scene, seat = Scene(), OpenSeat()
    scene.sequence("stopped", seat)
    scene.step(output("stopped", 5, prefill=(1, 0), num_kept=2, finished=True), output("gone"))
    scene.step(output("stopped"))
    assert seat.num_generated == scene.stats.generation_tokens_total == 2


def test_preemptions_are_counted() -> None:
    scene = Scene()
    scene.sequence("slow", OpenSeat())
    scene.step(output("slow", events=preempted()))
    assert scene.stats.num_preemptions_total == 1
