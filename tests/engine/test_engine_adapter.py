"""The places where vLLM's interface could change under us, held against the installed vLLM."""

import importlib
import inspect
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest

from headrace_server.errors import EngineDied, EngineFault, InvalidRequest, RequestError, Unavailable

pytestmark = pytest.mark.filterwarnings("ignore")  # importing vLLM warns about itself


def test_the_gated_client_hands_on_everything_that_it_does_not_gate() -> None:
    protocol = importlib.import_module("vllm.engine.protocol").EngineClient
    gated_class = importlib.import_module("headrace_server.engine.vllm_gated_client").GatedEngineClient

    class Inner:
        """Answers every attribute with its name."""

        def __getattr__(self, name: str) -> Any:
            return name

    gated = gated_class(Inner())
    names = {n for n in {*vars(protocol), *protocol.__annotations__} if not n.startswith("_")}
    ours = {"check_admission", "generate", "encode", "abort"}

    assert ours < names
    assert {name for name in names - ours if getattr(gated, name) != name} == set()


# What the meter stands before, and the argument that it looks at.
SEAM = {"add_request": "request", "process_outputs": "engine_core_outputs"}

# What the constructors, which differ, would have set.
ATTRIBUTES = {
    "parameter": None,
    "value": None,
    "message": "what happened",
    "http_status": HTTPStatus.SERVICE_UNAVAILABLE,
    "status_code": HTTPStatus.INTERNAL_SERVER_ERROR,
}


def subclasses(root: type[Exception]) -> Iterator[type[Exception]]:
    for child in root.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_vllm_error_has_a_place_among_ours() -> None:
    exceptions = importlib.import_module("vllm.exceptions")
    dead = importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError
    translated = importlib.import_module("headrace_server.engine.vllm_errors").translated

    for kind in set(subclasses(exceptions.VLLMError)) - {dead}:
        error = kind.__new__(kind)
        Exception.__init__(error, "what happened")
        error.__dict__.update(ATTRIBUTES)
        ours = translated(error)
        expected = InvalidRequest if issubclass(kind, exceptions.VLLMClientError) else (EngineFault, Unavailable)
        assert isinstance(ours, RequestError)
        if not issubclass(kind, exceptions.VLLMNotFoundError):
            assert isinstance(ours, expected), kind
    assert isinstance(translated(dead()), EngineDied)


def test_an_overlong_message_is_cut_and_a_long_prompt_has_its_code() -> None:
    validation = importlib.import_module("vllm.exceptions").VLLMValidationError
    translated = importlib.import_module("headrace_server.engine.vllm_errors").translated

    ours = translated(validation("This model's maximum context length is 8192 tokens. " + "x" * 5000))

    assert ours.code == "context_length_exceeded"
    assert len(ours.message) <= 500


def test_what_the_start_of_engines_replaces_in_vllm_is_there() -> None:
    handed_over = importlib.import_module("headrace_server.engine.vllm_processes")._HANDED_OVER
    assert [callable(getattr(importlib.import_module(name), attribute)) for name, attribute, _ in handed_over] == [
        True
    ] * len(handed_over)
    broadcast = importlib.import_module("vllm.distributed.device_communicators.shm_broadcast")
    assert "self.last_read + self.busy_loop_s" in inspect.getsource(broadcast.SpinCondition.wait)
    assert "_spin_condition" in inspect.getsource(broadcast.MessageQueue.create_from_handle)
    executor = importlib.import_module("vllm.v1.executor.multiproc_executor")
    assert list(inspect.signature(executor.WorkerProc._execute_worker_rpc).parameters) == ["self", "rpc_request"]
    assert callable(importlib.import_module("vllm.utils.func_utils")._supports_kw.cache_clear)
    worker = importlib.import_module("vllm.v1.worker.worker_base").WorkerBase
    assert callable(worker.check_health)


def test_what_the_meter_reads_of_outputs_and_sequences_is_there() -> None:
    engine = importlib.import_module("vllm.v1.engine")
    processor = importlib.import_module("vllm.v1.engine.output_processor")
    prefill = importlib.import_module("vllm.v1.metrics.stats").PrefillStats
    read = {"request_id", "new_token_ids", "prefill_stats", "events"}
    assert read <= set(engine.EngineCoreOutput.__struct_fields__)
    assert {"num_computed_tokens", "num_cached_tokens"} <= set(vars(prefill()))
    assert "request_index" in inspect.signature(processor.RequestState).parameters
    first = {name: list(inspect.signature(getattr(processor.OutputProcessor, name)).parameters)[1] for name in SEAM}
    assert first == SEAM
    assert "request_states" in vars(processor.OutputProcessor(None, log_stats=False))
